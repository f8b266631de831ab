// Numbers as people read them. A value that is not known is a dash.

export const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function number(value, digits = 1) {
  if (!known(value)) return UNKNOWN;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function share(value) {
  if (!known(value)) return UNKNOWN;
  return value > 0 && value < 0.005 ? "<1 %" : `${Math.round(100 * value)} %`;
}

export function size(bytes) {
  if (!known(bytes)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

export function time(ns) {
  if (!known(ns)) return UNKNOWN;
  const ms = ns / 1e6;
  if (ms < 1) return `${(1000 * ms).toFixed(0)} µs`;
  if (ms < 1000) return `${ms.toPrecision(3)} ms`;
  const seconds = ms / 1000;
  if (seconds < 100) return `${seconds.toPrecision(3)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export const clock = (wallMs) => new Date(wallMs).toLocaleTimeString("en-GB");

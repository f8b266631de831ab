/* Makes chosen reads and writes of a process fail, for tests: LD_PRELOAD it and set EF_FAULTS to a file of rules.

   A rule is a line: OPERATION ACTION FIRST COUNT TEXT
     OPERATION  read or write: every call of that kind (read, pread, preadv; write, pwrite, writev)
     ACTION     an errno (5 EIO, 28 ENOSPC), `short` (half of what was asked for), or `delay` (20 ms)
     FIRST      calls of this process that match and pass first
     COUNT      calls that are met after these; -1: all
     TEXT       part of the path of the file, to the end of the line
   The rules are read at every call, so a test changes them while the process runs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_RULES 16
static long seen[MAX_RULES];

enum { PASS, FAIL, SHORT };

static int decide(const char *operation, int fd, int *error) {
    const char *rules = getenv("EF_FAULTS");
    char link[64], path[4096], text[4096];
    if (!rules) return PASS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length < 0) return PASS;
    path[length] = 0;
    if (path[0] != '/') return PASS;
    int file = syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return PASS;
    length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0) return PASS;
    text[length] = 0;
    int number = 0, outcome = PASS;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) && number < MAX_RULES) {
        char kind[16], action[16];
        long first, count;
        int at = 0;
        if (sscanf(line, "%15s %15s %ld %ld %n", kind, action, &first, &count, &at) < 4 || !line[at]) continue;
        int own = number++;
        if (strcmp(kind, operation) || !strstr(path, line + at)) continue;
        long call = __atomic_fetch_add(&seen[own], 1, __ATOMIC_RELAXED);
        if (call < first || (count >= 0 && call >= first + count)) continue;
        if (!strcmp(action, "short")) outcome = SHORT;
        else if (!strcmp(action, "delay")) { struct timespec pause = {0, 20000000}; nanosleep(&pause, NULL); }
        else { *error = atoi(action); return FAIL; }
    }
    return outcome;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define MEET(operation) int error = 0; int what = decide(operation, fd, &error); \
    if (what == FAIL) { errno = error; return -1; }
#define HALF(count) ((what == SHORT && (count) > 1) ? (count) / 2 : (count))

static int half_vector(const struct iovec *from, int count, struct iovec *to) {
    size_t total = 0, kept = 0;
    int used = 0;
    for (int i = 0; i < count; i++) total += from[i].iov_len;
    size_t wanted = total > 4096 ? (total / 2) & ~(size_t)4095 : total; /* whole blocks, for direct reads */
    for (; used < count && used < 64 && kept < wanted; used++) {
        to[used] = from[used];
        if (kept + to[used].iov_len > wanted) to[used].iov_len = wanted - kept;
        kept += to[used].iov_len;
    }
    return used;
}

ssize_t read(int fd, void *data, size_t count) {
    REAL(read); MEET("read"); return real(fd, data, HALF(count));
}
ssize_t pread(int fd, void *data, size_t count, off_t at) {
    REAL(pread); MEET("read"); return real(fd, data, HALF(count), at);
}
ssize_t pread64(int fd, void *data, size_t count, off64_t at) {
    REAL(pread64); MEET("read"); return real(fd, data, HALF(count), at);
}
ssize_t preadv(int fd, const struct iovec *vector, int count, off_t at) {
    REAL(preadv); MEET("read");
    struct iovec half[64];
    if (what == SHORT) { count = half_vector(vector, count, half); vector = half; }
    return real(fd, vector, count, at);
}
ssize_t preadv64(int fd, const struct iovec *vector, int count, off64_t at) {
    REAL(preadv64); MEET("read");
    struct iovec half[64];
    if (what == SHORT) { count = half_vector(vector, count, half); vector = half; }
    return real(fd, vector, count, at);
}
ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t at, int flags) {
    REAL(preadv2); MEET("read"); return real(fd, vector, count, at, flags);
}
ssize_t preadv64v2(int fd, const struct iovec *vector, int count, off64_t at, int flags) {
    REAL(preadv64v2); MEET("read"); return real(fd, vector, count, at, flags);
}
ssize_t write(int fd, const void *data, size_t count) {
    REAL(write); MEET("write"); return real(fd, data, HALF(count));
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) {
    REAL(pwrite); MEET("write"); return real(fd, data, HALF(count), at);
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
    REAL(pwrite64); MEET("write"); return real(fd, data, HALF(count), at);
}
ssize_t writev(int fd, const struct iovec *vector, int count) {
    REAL(writev); MEET("write"); return real(fd, vector, count);
}

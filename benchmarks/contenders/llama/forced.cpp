// Runs forced tokens through llama.cpp. Arguments: a GGUF file; stdin: an order as JSON (order.py);
// stdout: one line of JSON. Weights are mapped, not read: what does not fit is for the kernel's page cache.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <vector>

#include <nlohmann/json.hpp>

#include "llama.h"

using json = nlohmann::json;
using Rows = std::vector<std::vector<llama_token>>;

static const int FEW_STEPS = 4;

static double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// One step: the tokens of every row from `position` on; the likeliest next token of every row.
static std::vector<llama_token> step(llama_context * context, const Rows & rows, int position, int vocabulary) {
    int count = 0;
    for (const auto & row : rows) count += row.size();
    llama_batch batch = llama_batch_init(count, 0, 1);
    std::vector<int> last;
    for (size_t row = 0; row < rows.size(); row++) {
        for (size_t i = 0; i < rows[row].size(); i++) {
            int at = batch.n_tokens++;
            batch.token[at] = rows[row][i];
            batch.pos[at] = position + i;
            batch.n_seq_id[at] = 1;
            batch.seq_id[at][0] = row;
            batch.logits[at] = i + 1 == rows[row].size();
        }
        last.push_back(batch.n_tokens - 1);
    }
    if (llama_decode(context, batch) != 0) throw std::runtime_error("llama_decode failed");
    std::vector<llama_token> likeliest;
    for (int at : last) {
        const float * logits = llama_get_logits_ith(context, at);
        likeliest.push_back(std::max_element(logits, logits + vocabulary) - logits);
    }
    llama_batch_free(batch);
    return likeliest;
}

struct Decoded {
    double first_s;
    std::vector<double> steps_s;
    std::vector<std::vector<llama_token>> choices;
};

// Prefill of the prompts, then `steps` steps with the tokens given.
// It ends sooner once it has taken `patience` seconds and a few steps are done.
static Decoded decode(llama_context * context, const Rows & prompts, const Rows & tokens, int steps, double patience, int vocabulary) {
    llama_memory_clear(llama_get_memory(context), true);
    Decoded done;
    double begun = seconds(), started = begun;
    done.choices.push_back(step(context, prompts, 0, vocabulary));
    done.first_s = seconds() - begun;
    for (int column = 0; column < steps && (column < FEW_STEPS || seconds() - started < patience); column++) {
        Rows inputs;
        for (const auto & row : tokens) inputs.push_back({row[column]});
        begun = seconds();
        done.choices.push_back(step(context, inputs, prompts[0].size() + column, vocabulary));
        done.steps_s.push_back(seconds() - begun);
    }
    return done;
}

// The number of threads with which a few steps took the least time.
static int best_threads(llama_context * context, const json & order, const Rows & prompts, const Rows & tokens, int vocabulary) {
    std::vector<int> candidates = order.at("threads");
    int best = 0;
    double least = 1e30;
    for (int threads : candidates) {
        llama_set_n_threads(context, threads, threads);
        Decoded tried = decode(context, prompts, tokens, order.at("trial_steps"), 1e30, vocabulary);
        double spent = 0;
        for (double each : tried.steps_s) spent += each;
        if (spent < least) { least = spent; best = threads; }
    }
    return best;
}

struct Room {
    uint32_t rows = 1, positions = 1, prefill_tokens = 1;
};

// What the largest case takes.
static Room room_for(const json & order) {
    Room room;
    for (const json & each : order.at("cases")) {
        uint32_t rows = each.at("prompts").size(), prompt = each.at("prompts")[0].size();
        room.rows = std::max(room.rows, rows);
        room.positions = std::max<uint32_t>(room.positions, prompt + each.at("tokens")[0].size());
        room.prefill_tokens = std::max(room.prefill_tokens, rows * prompt);
    }
    return room;
}

int main(int argc, char ** argv) {
    if (argc != 2) { std::fprintf(stderr, "usage: forced MODEL.gguf < ORDER.json\n"); return 2; }
    json order = json::parse(std::cin);
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_WARN) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    double begun = seconds();
    llama_model_params model_params = llama_model_default_params();
    model_params.load_mode = LLAMA_LOAD_MODE_MMAP;
    model_params.use_extra_bufts = order.at("options").at("repack");  // repacked weights would be a second copy in memory
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    Room room = room_for(order);
    params.n_seq_max = room.rows;
    params.n_ctx = room.rows * room.positions;
    params.n_batch = params.n_ubatch = room.prefill_tokens;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    json answer = {{"ready_s", seconds() - begun}, {"cases", json::array()}};
    for (const json & each : order.at("cases")) {
        Rows prompts = each.at("prompts"), tokens = each.at("tokens");
        int threads = best_threads(context, order, prompts, tokens, vocabulary);
        llama_set_n_threads(context, threads, threads);
        Decoded done = decode(context, prompts, tokens, tokens[0].size() - 1, order.at("patience_s"), vocabulary);
        answer["cases"].push_back({{"first_s", done.first_s}, {"steps_s", done.steps_s}, {"choices", done.choices},
                                   {"facts", {{"threads", threads}}}});
    }
    std::cout << answer.dump() << std::endl;
    llama_free(context);
    llama_model_free(model);
    return 0;
}

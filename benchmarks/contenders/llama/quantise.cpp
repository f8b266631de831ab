// Quantises a GGUF file by llama.cpp's own function. Arguments: SOURCE DESTINATION Q4_0|Q8_0 [experts]; with the fourth,
// all tensors but the experts stay in bfloat16.
#include <cstdio>
#include <cstring>

#include "llama.h"

int main(int argc, char ** argv) {
    const bool only_experts = argc == 5 && !std::strcmp(argv[4], "experts");
    if (argc != 4 && !only_experts) {
        std::fprintf(stderr, "usage: quantise SOURCE DESTINATION Q4_0|Q8_0 [experts]\n");
        return 2;
    }
    llama_backend_init();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = std::strcmp(argv[3], "Q8_0") ? LLAMA_FTYPE_MOSTLY_Q4_0 : LLAMA_FTYPE_MOSTLY_Q8_0;
    const llama_model_tensor_override kept[] = {{"attn_(q|k|v|output)\\.weight", GGML_TYPE_BF16}, {nullptr, GGML_TYPE_COUNT}};
    if (only_experts) {
        params.tt_overrides = kept;
        params.output_tensor_type = GGML_TYPE_BF16;
        params.token_embedding_type = GGML_TYPE_BF16;
    }
    return llama_model_quantize(argv[1], argv[2], &params) ? 1 : 0;
}

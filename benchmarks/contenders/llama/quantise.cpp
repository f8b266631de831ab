// Quantises a GGUF file by llama.cpp's own function. Arguments: SOURCE DESTINATION Q4_0|Q8_0.
#include <cstdio>
#include <cstring>

#include "llama.h"

int main(int argc, char ** argv) {
    if (argc != 4) { std::fprintf(stderr, "usage: quantise SOURCE DESTINATION Q4_0|Q8_0\n"); return 2; }
    llama_backend_init();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = std::strcmp(argv[3], "Q8_0") ? LLAMA_FTYPE_MOSTLY_Q4_0 : LLAMA_FTYPE_MOSTLY_Q8_0;
    return llama_model_quantize(argv[1], argv[2], &params) ? 1 : 0;
}

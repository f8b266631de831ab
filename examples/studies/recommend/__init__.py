"""Study of streaming recommenders: a mixture of side experts (XSMoE) beside DeepFM, DCN and DCN-V2."""

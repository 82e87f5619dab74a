"""GPTailor, RMM, M2N2 on task vectors and Sakana's data flow, each on the zoo."""

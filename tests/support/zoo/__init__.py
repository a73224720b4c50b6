"""The zoo: tiny random models of many architectures, and the stages that each of them is put through."""

"""The zoo: tiny random models of many architectures, and what is done with each of them."""

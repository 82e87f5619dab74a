"""M2N2's digits: two small networks, each trained on half of the digits, become one that knows all ten."""

"""How good a model is: data sets, protocols, which questions are asked, scores with their intervals, parsers. Pure."""

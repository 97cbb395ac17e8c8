"""How engines allocate memory, as pure arithmetic: one engine a file; what was observed corrects it."""

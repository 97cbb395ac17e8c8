"""The versions that `fleet` installs when nobody asks for another one: the only place to change them."""

# The build of the lab notes' tables ("build: 054d8b0f2 (8396)"), so that results stay comparable with them.
LLAMA_CPP_REPOSITORY = "https://github.com/ggml-org/llama.cpp"
LLAMA_CPP_VERSION = "b8396"

# Served and benched on Linux and measured in facts/backends.md; the notes' table was made with mlx-lm 0.31.1,
# which `--backend-version 0.31.1` still gives.
MLX_LM_VERSION = "0.32.2"
MLX_VERSION = "0.32.4"

"""Reading results out of files: what the tools wrote, and what `fleet results export` wrote."""

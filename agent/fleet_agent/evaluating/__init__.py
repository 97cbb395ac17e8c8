"""Programs that ask a model questions, one a file: started by the step `evaluate`, never imported by the agent."""

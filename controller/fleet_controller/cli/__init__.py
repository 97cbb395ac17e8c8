"""The command line. Every command is a gRPC client of the controller; heavy imports happen inside commands."""

"""Why a program failed, read from what it printed: one table for servers, one for installs, and what both share."""

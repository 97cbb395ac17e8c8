"""The agent: probes, jobs and services on one host. It needs only fleet_proto."""

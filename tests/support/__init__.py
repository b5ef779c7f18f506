"""What tests stand on: real databases, real processes, real servers. No test is in here."""

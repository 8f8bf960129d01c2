"""The API's speed: reads of many endpoints and jobs on a real API server, and what forwarding adds to a prediction."""

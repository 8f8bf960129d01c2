"""The API's speed: reads of a thousand endpoints on a real API server, and what forwarding adds to a prediction."""

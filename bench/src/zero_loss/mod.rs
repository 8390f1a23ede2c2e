//! Looks for requests that a gateway loses while it is reconfigured; works against any OpenAI-compatible one.

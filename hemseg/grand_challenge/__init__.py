"""The container's side: sockets, the evalutils layout, where outputs go, a batch, a server."""

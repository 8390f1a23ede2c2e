//! The founding experiment: a pool whose keepalive is smaller than its size, against one where they are equal.

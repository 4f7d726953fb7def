//! The tail of an old connection beside floods.

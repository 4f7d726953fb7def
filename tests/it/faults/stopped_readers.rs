//! Clients that stop for half a minute and then go on.

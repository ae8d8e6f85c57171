//! The fast backend.

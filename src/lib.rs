//! seerdb

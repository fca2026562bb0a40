// Package store is the record: what happened, in two SQLite files of a data
// folder, and the only SQL of the program. maestro.db (DB) holds runs, attempts,
// agents, commits, the desired state of the forge, and the sequence of changes;
// logs.db (Logs) holds the bytes that tasks wrote, so that a burst of log never
// delays the record. It decides nothing: what may follow what is decided by pure
// packages, and refused here when it is impossible.
//
// Each file has one writer handle with one connection, whose transactions are
// immediate, and a pool of read-only ones. Every pragma is part of the data
// source name, because a pragma run on a pool reaches one connection of many.
// synchronous is FULL: what a call reports as done is on the disk.
//
// A transition is one UPDATE that names the state it leaves; a row count other
// than one is a fault.Conflict, and the transaction is rolled back. Under that,
// the tables refuse contradictions by themselves: CHECKs on states and times, and
// triggers that keep outcomes for ever, epochs rising and the sequence without
// gaps. Change rows are written in the transaction they tell of; watchers are
// woken after the commit and read on from the sequence number they know.
//
// Errors: fault.Conflict means that the record moved on and must be read again,
// fault.NotFound that the thing named is not there, fault.Invalid that a person
// asked for something impossible. Everything else is fault.Internal: the disk, a
// damaged file, or a defect of the caller; its text says what to do.
package store

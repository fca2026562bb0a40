// Package pipeline is the vocabulary: what a composition, a run, a task, an
// agent and an event are, and which states may follow which. Every other room
// speaks in these types. It holds plain values and pure functions over them, and
// imports nothing but the standard library; it knows no clock, file or network.
//
// Values are shared by reading only: a function that changes one returns a copy
// or says in its comment that it takes ownership.
package pipeline

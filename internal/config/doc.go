// Package config turns a commit's tree into typed, checked pipeline values: it
// reads the CUE of an ops repository, evaluates it, and reports every mistake
// with its place in the author's file. It does not know Git, runs or the record.
//
// CUE from a commit is untrusted code: it can use up any amount of time and
// memory, and nothing in the evaluator can stop it. So it is evaluated in a child
// process that has no files, no network of its own making and hard limits, gets
// the needed text on its standard input, and answers in JSON. The parent parses
// import clauses and reads JSON, no more.
//
// A unit is a directory with files of package ops. As in CUE, its package
// includes the files of package ops in the directories above it, so that ops.cue
// at the root binds every unit to the schema. Units are evaluated apart: a mistake
// in one leaves the others usable, and a unit's result is kept under a hash of all
// that went into it. The embedded schema always wins over a vendored copy.
//
// Reading order: survey.go finds the units and what each imports; evaluator.go
// decides which must be evaluated; crew.go runs children; serve.go is the child;
// load.go builds CUE instances from text; check.go, composition.go and their
// neighbours turn a value into a pipeline.Composition: template.go adds what its
// templates say, checkrefs.go looks at every reference, graph.go and context.go at
// the order of tasks; cross.go and crosscalls.go compare the results of all units.
// blank.go and fill.go compute what waits for a run.
package config

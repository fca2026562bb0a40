package config_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// base is what every example has unless it says otherwise.
const base = `
-- cue.mod/module.cue --
module: "acme.example/ops@v0"
language: version: "v0.17.0"
-- ops.cue --
package ops

import "github.com/maestro-cd/maestro"

compositions: [Name=_]: maestro.#Composition & {name: Name}
pools: [Name=_]: maestro.#Pool & {name: Name}
secrets: [Name=_]: maestro.#Secret & {name: Name}

event: maestro.#Event
-- plugins/fog/plugin.cue --
// Package fog starts and stops machines.
package fog

import "github.com/maestro-cd/maestro"

manifest: maestro.#Plugin & {
	description: "Starts and stops machines"
	programs: [{argv: ["./run"]}]
}

#Provider: "aws" | "google" | "openstack"

#Provision: maestro.#Task & {
	uses: "fog/provision"
	fields: {
		provider!:    #Provider
		image_id!:    string
		credentials?: maestro.#SecretRef
		count:        *1 | int & >=1 & <=100
		size:         *"small" | "medium" | "large"
	}
	outputs: {
		instance_ids: [...string] @provide(cloud.instance_ids)
		public_ip:    string      @provide(cloud.public_ip)
		provider:     #Provider   @provide(cloud.provider)
	}
}

#Deprovision: maestro.#Task & {
	uses: "fog/deprovision"
	fields: {
		instance_ids?: [...string] @inherit(cloud.instance_ids)
		provider?:     #Provider   @inherit(cloud.provider)
	}
	outputs: {}
}
-- plugins/fog/run --
#!/bin/sh
`

// files turns an archive into a tree, on top of the base. An empty file removes
// one of the base; one that begins with "#!" is a program.
func files(t testing.TB, archives ...string) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	for _, a := range archives {
		for _, f := range txtar.Parse([]byte(a)).Files {
			if len(bytes.TrimSpace(f.Data)) == 0 {
				delete(out, f.Name)
				continue
			}
			mode := fs.FileMode(0o644)
			if bytes.HasPrefix(f.Data, []byte("#!")) {
				mode = 0o755
			}
			out[f.Name] = &fstest.MapFile{Data: f.Data, Mode: mode}
		}
	}
	return out
}

func evaluate(t testing.TB, e *config.Evaluator, tree fstest.MapFS) pipeline.Config {
	t.Helper()
	cfg, err := e.Evaluate(context.Background(), "c0ffee", config.FSTree(tree))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func rendered(t testing.TB, cfg pipeline.Config, tree fstest.MapFS) string {
	t.Helper()
	var out strings.Builder
	source := func(name string) []byte {
		if f := tree[name]; f != nil {
			return f.Data
		}
		return nil
	}
	if err := config.RenderDiagnostics(&out, cfg.Diagnostics, source, false); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// schemaLine is a place in the schema, which moves with every change of the schema.
var schemaLine = regexp.MustCompile(`schema\.cue:\d+`)

// TestEveryMistakeIsExplained compares what is said of each example with what is
// recorded in it. UPDATE=1 records anew.
func TestEveryMistakeIsExplained(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	e := newEvaluator(t, nil)
	for _, p := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(p), ".txtar"), func(t *testing.T) {
			t.Parallel()
			golden(t, e, p)
		})
	}
}

func golden(t *testing.T, e *config.Evaluator, name string) {
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	ar := txtar.Parse(raw)
	want := map[string]string{}
	input := &txtar.Archive{}
	for _, f := range ar.Files {
		if strings.HasPrefix(f.Name, "want/") {
			want[f.Name] = string(f.Data)
			continue
		}
		input.Files = append(input.Files, f)
	}
	tree := files(t, base, string(txtar.Format(input)))
	cfg := evaluate(t, e, tree)
	got := map[string]string{"want/diagnostics": schemaLine.ReplaceAllString(rendered(t, cfg, tree), "schema.cue")}
	if got["want/diagnostics"] == "" {
		got["want/diagnostics"] = "none\n"
	}
	if _, ok := want["want/plan.json"]; ok {
		plan, err := json.MarshalIndent(cfg.Compositions, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got["want/plan.json"] = string(plan) + "\n"
	}
	if os.Getenv("UPDATE") != "" {
		record(t, name, ar.Comment, input, got)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got; UPDATE=1 records it):\n%s", name, diff)
	}
	askCUE(t, name, e, tree, cfg)
}

func record(t *testing.T, name string, comment []byte, input *txtar.Archive, got map[string]string) {
	t.Helper()
	out := &txtar.Archive{Comment: comment, Files: input.Files}
	for _, n := range []string{"want/diagnostics", "want/plan.json"} {
		if s, ok := got[n]; ok {
			out.Files = append(out.Files, txtar.File{Name: n, Data: []byte(s)})
		}
	}
	if err := os.WriteFile(name, txtar.Format(out), 0o644); err != nil {
		t.Fatal(err)
	}
}

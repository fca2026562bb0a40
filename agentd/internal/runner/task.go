package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/agentd/internal/workspace"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/redact"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	// mostFieldEnv bounds a field that is given as a variable too; the system
	// refuses to start programs with much larger ones.
	mostFieldEnv = 64 << 10
	// fetchFor is how long a plugin that cannot be had just now is tried for: longer
	// than a restart of the control plane takes.
	fetchFor = 2 * time.Minute
	eventsIn = "events"
)

// input is what a task reads from its standard input.
type input struct {
	Task        pipeline.TaskName        `json:"task"`
	Uses        string                   `json:"uses"`
	Composition pipeline.CompositionName `json:"composition"`
	Run         pipeline.RunID           `json:"run"`
	Number      int                      `json:"number"`
	Attempt     pipeline.AttemptID       `json:"attempt"`
	Try         int                      `json:"try"`
	Fields      map[string]any           `json:"fields"`
	Previous    json.RawMessage          `json:"previous"`
	Facts       json.RawMessage          `json:"facts"`
	Workspace   string                   `json:"workspace"`
	Scratch     string                   `json:"scratch"`
	Cache       string                   `json:"cache"`
	Commit      pipeline.CommitID        `json:"commit"`
	Ref         pipeline.Ref             `json:"ref"`
	Repo        string                   `json:"repo"`
}

// fetch makes the plugin ready, and tries again while it cannot be had just now.
func (a *attempt) fetch(ctx context.Context) fetched {
	const first, most = 250 * time.Millisecond, 10 * time.Second
	began := time.Now()
	for wait := first; ; wait = min(2*wait, most) {
		dir, argv, err := a.r.cfg.Plugins.Fetch(ctx, a.spec.Plugin)
		if err == nil && (len(argv) == 0 || argv[0] == "") {
			err = fault.New(fault.Invalid, "plugin %s names no program", a.spec.Plugin.Name)
		}
		if err == nil || !fault.Is(err, fault.Unavailable) || time.Since(began) > fetchFor {
			return fetched{dir, argv, err}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fetched{err: err}
		}
	}
}

func (a *attempt) workspaceKey() workspace.Key {
	k := workspace.Key{Composition: a.spec.Composition, Untrusted: a.spec.Untrusted, Slot: a.spec.Slot}
	if a.spec.Source != "" {
		k.Source = a.spec.Repo
	}
	return k
}

// prepare makes the directories of the attempt and says what the shim has to do.
func (a *attempt) prepare(plugin fetched, secrets map[string]wire.Redacted) (shim.Config, error) {
	values, err := a.secretValues(secrets)
	if err != nil {
		return shim.Config{}, err
	}
	dir, release, err := a.r.workspaces.Acquire(a.workspaceKey(), a.spec.Run)
	if err != nil {
		return shim.Config{}, err
	}
	if a.release != nil {
		a.release()
	}
	a.release = release
	trust := "trusted"
	if a.spec.Untrusted {
		trust = "untrusted"
	}
	at := places{
		workspace: dir, plugin: plugin.dir, self: a.r.cfg.Self,
		scratch: filepath.Join(a.scratch, "tmp"), home: filepath.Join(a.scratch, "home"),
		events: filepath.Join(a.scratch, eventsIn),
		// What untrusted work has stored, trusted work must not build from.
		cache: filepath.Join(a.r.cfg.Dir, "cache", trust),
	}
	if err := a.makeDirs(at); err != nil {
		return shim.Config{}, fmt.Errorf("prepare attempt %s: %w", a.id, err)
	}
	fields, err := fieldsWithSecrets(a.spec.Fields, values)
	if err != nil {
		return shim.Config{}, err
	}
	in, err := json.Marshal(a.input(at, fields))
	if err != nil {
		return shim.Config{}, fmt.Errorf("prepare attempt %s: %w", a.id, err)
	}
	cfg := shim.Config{
		Attempt: a.id, Dir: a.dir, Argv: plugin.argv, PluginDir: plugin.dir, WorkDir: dir,
		Env: a.env(at, fields), Input: in, Events: at.events,
		Timeout: a.r.cfg.Policy.timeout(&a.spec), Grace: a.r.cfg.Grace,
		Lease: a.r.deadline(&a.spec), Once: a.spec.Effect == pipeline.Once,
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		cfg.Secrets = append(cfg.Secrets, shim.Secret{Name: name, Value: values[name]})
	}
	return cfg, nil
}

// secretValues returns the value of each secret that the task may have.
func (a *attempt) secretValues(secrets map[string]wire.Redacted) (map[string]string, error) {
	values := make(map[string]string, len(a.spec.Secrets))
	for _, name := range a.spec.Secrets {
		v, ok := secrets[string(name)]
		if !ok || v == "" {
			return nil, fault.New(fault.Invalid, "secret %q has no value; see the secret's declaration and where the reconciler reads it", name)
		}
		// One that cannot be masked would show up in the log.
		if err := redact.Check(redact.Secret{Name: string(name), Value: string(v)}); err != nil {
			return nil, err
		}
		values[string(name)] = string(v)
	}
	return values, nil
}

func (a *attempt) makeDirs(at places) error {
	// Leftovers of a start that did not come to pass.
	for _, d := range []string{a.dir, a.scratch} {
		if err := workspace.RemoveAll(d); err != nil {
			return err
		}
	}
	for _, d := range []string{a.dir, at.scratch, at.home, at.cache} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	return os.WriteFile(at.events, nil, 0o600)
}

// places are the paths that a task gets to know.
type places struct{ workspace, plugin, self, scratch, home, events, cache string }

func (a *attempt) input(at places, fields map[string]any) input {
	s := &a.spec
	facts := json.RawMessage("{}")
	if a.r.cfg.Facts != nil {
		if known := a.r.cfg.Facts(); len(known) > 0 {
			facts = known
		}
	}
	return input{
		Task: s.Task, Uses: s.Uses, Composition: s.Composition, Run: s.Run, Number: s.Number,
		Attempt: a.id, Try: s.TryNumber, Fields: fields, Previous: s.Previous, Facts: facts,
		Workspace: at.workspace, Scratch: at.scratch, Cache: at.cache,
		Commit: s.Commit, Ref: s.Ref, Repo: s.Repo,
	}
}

// env is the task's whole environment. No name in it comes from a composition but
// behind the prefix FIELD_, so that none can be LD_PRELOAD or BASH_ENV.
func (a *attempt) env(at places, fields map[string]any) []string {
	s := &a.spec
	home := os.Getenv("HOME")
	if s.Untrusted || home == "" {
		// What untrusted work leaves in a home, such as ~/.ssh/config, goes with it.
		home = at.home
	}
	env := append(systemEnv(),
		"HOME="+home, "TMPDIR="+at.scratch,
		"MAESTRO_EVENTS="+at.events, "MAESTRO_WORKSPACE="+at.workspace, "MAESTRO_SCRATCH="+at.scratch,
		"MAESTRO_CACHE="+at.cache, "MAESTRO_PLUGIN_DIR="+at.plugin, "MAESTRO_AGENTD="+at.self,
		"MAESTRO_RUN="+string(s.Run), "MAESTRO_NUMBER="+strconv.Itoa(s.Number),
		"MAESTRO_COMPOSITION="+string(s.Composition), "MAESTRO_TASK="+string(s.Task), "MAESTRO_USES="+s.Uses,
		"MAESTRO_ATTEMPT="+string(a.id), "MAESTRO_TRY="+strconv.Itoa(s.TryNumber),
		"MAESTRO_COMMIT="+string(s.Commit), "MAESTRO_REF="+string(s.Ref), "MAESTRO_REPO="+s.Repo,
		"MAESTRO_IDEMPOTENCY_KEY="+s.IdempotencyKey, "MAESTRO_FIELDS="+fieldNames(fields),
	)
	env = append(env, fieldEnv(fields)...)
	// A NUL would make the system refuse the whole environment.
	return slices.DeleteFunc(env, func(e string) bool { return strings.ContainsRune(e, 0) })
}

// fieldNames lists the fields that are given, so that a program in shell need not
// read JSON to know whether one is.
func fieldNames(fields map[string]any) string {
	names := slices.Sorted(maps.Keys(fields))
	return strings.Join(slices.DeleteFunc(names, func(n string) bool { _, ok := fieldVariable(n); return !ok }), " ")
}

// fieldEnv gives scalar fields as FIELD_NAME as well. Of two fields with the same
// variable the first by name has it.
func fieldEnv(fields map[string]any) []string {
	var env []string
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		key, ok := fieldVariable(name)
		text, scalar := scalarText(fields[name])
		if !ok || !scalar || seen[key] || len(text) > mostFieldEnv {
			continue
		}
		seen[key] = true
		env = append(env, key+"="+text)
	}
	return env
}

func fieldVariable(name string) (string, bool) {
	key := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	for _, c := range key {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return "", false
		}
	}
	return "FIELD_" + key, name != ""
}

func scalarText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	case map[string]any:
		value, ok := v["value"].(string)
		_, secret := v["secret"]
		return value, ok && secret && len(v) == 2
	}
	return "", false
}

// fieldsWithSecrets decodes the fields and puts the values of secrets beside their
// references. Only what the task declared is filled in: a text that looks like a
// reference to another secret stays a text.
func fieldsWithSecrets(raw json.RawMessage, values map[string]string) (map[string]any, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return map[string]any{}, nil
	}
	v, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return nil, fault.New(fault.Invalid, "fields of the task are not JSON: %w", err)
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, fault.New(fault.Invalid, "fields of the task are not a JSON object")
	}
	for name := range fields {
		reveal(fields[name], values)
	}
	return fields, nil
}

func reveal(v any, values map[string]string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			reveal(e, values)
		}
	case map[string]any:
		name, isRef := v["secret"].(string)
		if value, declared := values[name]; isRef && declared && len(v) == 1 {
			v["value"] = value
			return
		}
		for _, e := range v {
			reveal(e, values)
		}
	}
}

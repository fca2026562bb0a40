package emit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// maxInput bounds the task that Env reads; the agent sends far less.
const maxInput = 4 << 20

// Env is "agentd env": it reads the task's JSON from in, and writes a line
// export NAME='VALUE' to out for each member of the field env, sorted by name, for
// a shell to eval. A task without that field has no lines. Complaints go to log,
// and then out gets nothing. The result is the exit code.
func Env(in io.Reader, out, log io.Writer) int {
	lines, err := exports(in)
	if err == nil {
		_, err = io.WriteString(out, lines)
	}
	if err != nil {
		fmt.Fprintf(log, "agentd env: %v\n", err)
		return exitFailed
	}
	return 0
}

func exports(in io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the task: %w", err)
	case len(raw) > maxInput:
		return "", fmt.Errorf("the task has more than %d bytes", maxInput)
	case len(bytes.TrimSpace(raw)) == 0:
		return "", errors.New("there is no task on standard input; something has read it before")
	}
	var task struct {
		Fields struct {
			Env map[string]json.RawMessage `json:"env"`
		} `json:"fields"`
	}
	if err := json.Unmarshal(raw, &task); err != nil {
		return "", fmt.Errorf("read the task: %w", err)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(task.Fields.Env)) {
		if err := checkName(name); err != nil {
			return "", err
		}
		value, err := text(task.Fields.Env[name])
		if err != nil {
			return "", fmt.Errorf("env: %s %w", name, err)
		}
		b.WriteString("export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'\n")
	}
	return b.String(), nil
}

// text is the value of a variable: a string, a number or a boolean as it is
// written, or the value of a secret.
func text(raw json.RawMessage) (string, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	s := ""
	switch v := v.(type) {
	case string:
		s = v
	case json.Number, bool:
		s = fmt.Sprint(v)
	case map[string]any:
		value, ok := v["value"].(string)
		if _, secret := v["secret"]; !secret || !ok {
			return "", errors.New("is neither text nor a secret with its value")
		}
		s = value
	default:
		return "", errors.New("is not text")
	}
	if strings.Contains(s, "\x00") {
		return "", errors.New("has a NUL byte, which no variable can hold")
	}
	return s, nil
}

// Variables that say which code a shell, a loader or Git runs, or that belong to
// the agent. A script that really wants one sets it itself, where it can be seen.
var (
	reservedPrefixes = []string{"MAESTRO_", "FIELD_", "AGENTD_", "LD_", "DYLD_", "BASH_FUNC_"}
	reservedNames    = []string{
		"PATH", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "BASHOPTS", "PS4", "CDPATH", "PROMPT_COMMAND",
		"NODE_OPTIONS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_EXEC_PATH",
	}
)

// maxName bounds the name of a variable.
const maxName = 64

// isName is written out, because compiling an expression would cost every call of
// agentd more than the rest of its start.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

func checkName(name string) error {
	if !isName(name) {
		return fmt.Errorf("env: %.80q cannot be the name of a variable (a letter or _, then up to 63 letters, digits and _)", name)
	}
	upper := strings.ToUpper(name)
	if slices.Contains(reservedNames, upper) || slices.ContainsFunc(reservedPrefixes, func(p string) bool { return strings.HasPrefix(upper, p) }) {
		return fmt.Errorf("env: %s is reserved, because it decides what programs run; set it inside the script if it must be", name)
	}
	return nil
}

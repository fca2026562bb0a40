package facts

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"
)

const (
	// maxFactFile bounds a fact file, and what a program prints.
	maxFactFile = 64 << 10
	// maxFactFiles bounds the folder.
	maxFactFiles = 256
	// programsAtOnce keeps a folder of slow programs from slowing the machine.
	programsAtOnce = 4
)

// external reads the folder of external facts: what each file says, in the order
// of their names. The name's end tells the kind: .txt (lines name=value, values
// are text), .json, .yaml and .yml (an object), or a program that prints either
// lines or a JSON object: by its executable bit, on Windows by .exe, .com, .bat,
// .cmd or .ps1. Files whose name begins with a dot, and copies that editors leave,
// are ignored.
func external(ctx context.Context, dir string, log *slog.Logger) []map[string]any {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && dir != "" {
			log.WarnContext(ctx, "external facts not readable", slog.String("dir", dir), slog.Any("err", err))
		}
		return nil
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); !ignored(n) {
			names = append(names, n)
		}
	}
	if len(names) > maxFactFiles {
		log.WarnContext(ctx, "too many fact files, the last ones are ignored", slog.String("dir", dir), slog.Int("files", len(names)), slog.Int("most", maxFactFiles))
		names = names[:maxFactFiles]
	}

	out := make([]map[string]any, len(names))
	slots := make(chan struct{}, programsAtOnce)
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			f, err := readFile(ctx, filepath.Join(dir, name))
			if err != nil {
				log.WarnContext(ctx, "fact file ignored", slog.String("file", filepath.Join(dir, name)), slog.Any("err", err))
				return
			}
			out[i] = f
		})
	}
	wg.Wait()
	return out
}

func ignored(name string) bool {
	for _, end := range []string{"~", ".bak", ".swp", ".orig", ".tmp", ".md"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#")
}

func readFile(ctx context.Context, path string) (map[string]any, error) {
	// Stat follows links: the folder is the operator's, who may keep facts elsewhere.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("is a folder")
	}
	// A FIFO would be waited for without end.
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	parse := parserOf(path)
	if parse == nil {
		argv := commandLine(path, info.Mode())
		if argv == nil {
			return nil, errors.New("is neither .txt, .json nor .yaml, nor executable")
		}
		printed, err := run(ctx, argv, maxFactFile)
		if err != nil {
			return nil, err
		}
		return parsePrinted(printed)
	}
	raw, err := readCapped(path)
	if err != nil {
		return nil, err
	}
	return parse(raw)
}

func readCapped(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFactFile+1))
	if err == nil && len(raw) > maxFactFile {
		return nil, fmt.Errorf("is larger than %d KiB", maxFactFile>>10)
	}
	return raw, err
}

func parserOf(path string) func([]byte) (map[string]any, error) {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".txt":
		return parseLines
	case ".json":
		return parseJSON
	case ".yaml", ".yml":
		return parseYAML
	}
	return nil
}

func parsePrinted(b []byte) (map[string]any, error) {
	if b = bytes.TrimSpace(b); bytes.HasPrefix(b, []byte("{")) {
		return parseJSON(b)
	}
	return parseLines(b)
}

// parseLines reads name=value; blank lines and those that begin with # do not count.
func parseLines(b []byte) (map[string]any, error) {
	f := map[string]any{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, fmt.Errorf("line %d is not name=value", n)
		}
		f[name] = strings.TrimSpace(value)
	}
	return f, lines.Err()
}

func parseJSON(b []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var f map[string]any
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("is not a JSON object: %w", err)
	}
	if d.More() {
		return nil, errors.New("has more than one JSON value")
	}
	return f, nil
}

func parseYAML(b []byte) (map[string]any, error) {
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("is not YAML: %w", err)
	}
	if v == nil {
		return nil, nil // an empty file, or only comments
	}
	f, ok := fromYAML(v, 0).(map[string]any)
	if !ok {
		return nil, errors.New("is not a YAML mapping")
	}
	return f, nil
}

// fromYAML makes string keys of all keys. What is deeper than any fact may be is
// left out; aliases could otherwise multiply it.
func fromYAML(v any, depth int) any {
	if depth > maxDepth {
		return nil
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = fromYAML(e, depth+1)
		}
		return v
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[fmt.Sprint(k)] = fromYAML(e, depth+1)
		}
		return m
	case []any:
		for i, e := range v {
			v[i] = fromYAML(e, depth+1)
		}
	}
	return v
}

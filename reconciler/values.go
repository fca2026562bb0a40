package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/redact"
	"github.com/maestro-cd/maestro/internal/sops"
)

// secrets reads the values of the secrets that the configuration in force declares.
// Values are read anew each time and kept nowhere.
type secrets struct {
	// tree opens the files of a commit of the ops repository.
	tree func(context.Context, pipeline.CommitID) (fs.FS, error)
	keys func() (sops.Keys, error)

	mu       sync.Mutex
	commit   pipeline.CommitID                       // whose encrypted files count
	declared map[pipeline.SecretName]pipeline.Secret // nil until a configuration is live
}

func valuesOf(repo *gitrepo.Repo, opt options) *secrets {
	return &secrets{keys: opt.secretKeys, tree: func(ctx context.Context, id pipeline.CommitID) (fs.FS, error) {
		return repo.Tree(ctx, id)
	}}
}

func (s *secrets) declare(cfg pipeline.Config) {
	m := make(map[pipeline.SecretName]pipeline.Secret, len(cfg.Secrets))
	for _, d := range cfg.Secrets {
		m[d.Name] = d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit, s.declared = cfg.Commit, m
}

// Secret returns a value. It is fault.Invalid when it cannot be had until somebody does
// something, which the error says.
func (s *secrets) Secret(name pipeline.SecretName) (string, error) {
	s.mu.Lock()
	known := s.declared != nil
	d, ok := s.declared[name]
	commit := s.commit
	s.mu.Unlock()
	switch {
	case !known:
		return "", fault.New(fault.Unavailable, "secret %s: no configuration is live yet", name)
	case !ok:
		return "", fault.New(fault.Invalid, "secret %s is not declared on the default branch", name)
	}
	v, err := s.read(&d, commit)
	if err != nil {
		return "", fmt.Errorf("secret %s: %w", name, err)
	}
	// A short value cannot be masked without masking half of every log.
	return v, redact.Check(redact.Secret{Name: string(name), Value: v})
}

func (s *secrets) read(d *pipeline.Secret, commit pipeline.CommitID) (string, error) {
	switch {
	case d.Sops != "":
		return s.open(d, commit)
	case d.File != "":
		return secretFile(d.File)
	}
	v := os.Getenv(d.Env)
	if v == "" {
		return "", fault.New(fault.Invalid, "there is no environment variable %s; the reconciler's own environment must have it", d.Env)
	}
	return v, nil
}

// open decrypts the whole file, because nothing in it is true before its checksum is.
func (s *secrets) open(d *pipeline.Secret, commit pipeline.CommitID) (string, error) {
	tree, err := s.tree(context.Background(), commit) // it is on this disk
	if err != nil {
		return "", err
	}
	text, err := readSmall(tree, d.Sops)
	if err != nil {
		return "", err
	}
	f, err := sops.Parse(d.Sops, text)
	if err != nil {
		return "", err
	}
	keys, err := s.keys()
	if err != nil {
		return "", err
	}
	o, err := f.Open(keys)
	if err != nil {
		return "", err
	}
	if err := o.CheckPath(); err != nil {
		return "", err
	}
	return o.Value(d.Key)
}

// readSmall reads an encrypted file of a commit.
func readSmall(tree fs.FS, name string) ([]byte, error) {
	f, err := tree.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Invalid, "the repository has no file %s; make it with: reconciler secrets edit %s", name, name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, sops.MaxSize+1))
}

// secretKeys reads the private age keys that open encrypted files: from the file that
// was named, else from where sops looks for them. None is no error here. It reads anew
// each time, so that a key can be replaced without a restart.
func (o *options) secretKeys() (sops.Keys, error) {
	from, text := o.secretsKeyFile, os.Getenv("SOPS_AGE_KEY")
	if from == "" && text == "" {
		from = os.Getenv("SOPS_AGE_KEY_FILE")
	}
	if from == "" && text == "" && o.personal {
		from = personalKeyFile()
	}
	if from == "" && text == "" {
		return sops.Keys{}, nil
	}
	named := "SOPS_AGE_KEY"
	if from != "" {
		named = from
		var err error
		if text, err = secretFile(from); err != nil {
			return sops.Keys{}, err
		}
	}
	k, err := sops.ParseKeys([]byte(text))
	if err != nil {
		return sops.Keys{}, fault.New(fault.Invalid, "%s: %w", named, err)
	}
	return k, nil
}

// personalKeyFile is where sops keeps the keys of whoever is at the keyboard, "" when
// there are none.
func personalKeyFile() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	file := filepath.Join(dir, "sops", "age", "keys.txt")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	return file
}

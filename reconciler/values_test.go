package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sops"
)

// vault is what the default branch has, with a key that opens its files.
func vault(t *testing.T) (values *secrets, tree fstest.MapFS, recipient string, opt *options) {
	t.Helper()
	private, to, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	opt = &options{secretsKeyFile: filepath.Join(t.TempDir(), "key")}
	if err := os.WriteFile(opt.secretsKeyFile, []byte("# a comment\n"+private+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree = fstest.MapFS{}
	values = &secrets{keys: opt.secretKeys, tree: func(_ context.Context, c pipeline.CommitID) (fs.FS, error) {
		if c != "live" {
			return nil, fmt.Errorf("commit %s was asked for", c)
		}
		return tree, nil
	}}
	return values, tree, to, opt
}

func seal(t *testing.T, name, text string, to ...string) *fstest.MapFile {
	t.Helper()
	out, err := sops.Seal(name, []byte(text), sops.How{Recipients: to})
	if err != nil {
		t.Fatal(err)
	}
	return &fstest.MapFile{Data: out, Mode: 0o644}
}

func TestEncryptedSecretIsReadOfWhatIsInForce(t *testing.T) {
	t.Parallel()
	values, tree, to, opt := vault(t)
	const file = "secrets/prod.sops.yaml"
	values.declare(pipeline.Config{Commit: "live", Secrets: []pipeline.Secret{
		{Name: "token", Sops: file, Key: "aws.token"}, {Name: "short", Sops: file, Key: "short"}, {Name: "gone", Sops: file, Key: "gone"},
	}})
	tree[file] = seal(t, file, "_path: "+file+"\naws: {token: CANARY-aws-token}\nshort: tiny\n", to)
	if v, err := values.Secret("token"); v != "CANARY-aws-token" || err != nil {
		t.Errorf("token = %q, %v", v, err)
	}
	refused := func(name pipeline.SecretName, says ...string) {
		t.Helper()
		v, err := values.Secret(name)
		if v != "" && name != "short" || !fault.Is(err, fault.Invalid) {
			t.Errorf("%s = %q, %v, which is %s", name, v, err, fault.KindOf(err))
			return
		}
		for _, s := range append(says, string(name)) {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("error does not say %q: %v", s, err)
			}
		}
		if strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), "AGE-SECRET-KEY-2") {
			t.Errorf("error tells a secret: %v", err)
		}
	}
	refused("short", "cannot be masked")
	refused("gone", `no key "gone"`)

	good := tree[file]
	tree[file] = seal(t, file, "_path: secrets/other.sops.yaml\naws: {token: CANARY-aws-token}\n", to)
	refused("token", "is a copy of secrets/other.sops.yaml")
	tree[file] = &fstest.MapFile{Data: []byte(strings.Replace(string(good.Data), "type:str]", "type:int]", 1)), Mode: 0o644}
	refused("token", "changed by other means than sops")
	delete(tree, file)
	refused("token", "has no file "+file)
	_, other, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	tree[file] = seal(t, file, "aws: {token: CANARY-aws-token}\n", other)
	refused("token", "is encrypted to "+other, to)
	tree[file] = good
	if err := os.WriteFile(opt.secretsKeyFile, []byte("AGE-SECRET-KEY-2CANARY"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("token", opt.secretsKeyFile, "no private age key")
	opt.secretsKeyFile = filepath.Join(t.TempDir(), "absent")
	refused("token", opt.secretsKeyFile)
}

func TestAgeKeysAreWhereSopsLooksForThem(t *testing.T) {
	private, to, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("SOPS_AGE_KEY", "")
	t.Setenv("SOPS_AGE_KEY_FILE", "")
	file := filepath.Join(home, "sops", "age", "keys.txt")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	finds := func(opt options, want bool) {
		t.Helper()
		k, err := opt.secretKeys()
		if err != nil || k.None() == want || want && k.Recipients()[0] != to {
			t.Errorf("keys of %v, %v; want one: %v", k.Recipients(), err, want)
		}
	}
	finds(options{}, false) // a server is nobody's
	finds(options{personal: true}, true)
	t.Setenv("SOPS_AGE_KEY_FILE", file)
	finds(options{}, true)
	t.Setenv("SOPS_AGE_KEY_FILE", "")
	t.Setenv("SOPS_AGE_KEY", private)
	finds(options{}, true)
}

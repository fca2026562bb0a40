package sshsig_test

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/sshsig"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// person has a key of ssh-keygen's making.
type person struct {
	t    *testing.T
	file string
	line string // of the public key
}

func newPerson(t *testing.T, kind ...string) person {
	t.Helper()
	p := person{t: t, file: filepath.Join(t.TempDir(), "key")}
	run(t, "", "ssh-keygen", append([]string{"-q", "-N", "", "-C", "a comment", "-f", p.file, "-t"}, kind...)...)
	b, err := os.ReadFile(p.file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	p.line = strings.TrimSpace(string(b))
	return p
}

func run(t *testing.T, stdin, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "HOME="+t.TempDir(),
		"GIT_AUTHOR_NAME=Ana", "GIT_AUTHOR_EMAIL=ana@example.com", "GIT_COMMITTER_NAME=Ana", "GIT_COMMITTER_EMAIL=ana@example.com")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	return string(out)
}

func (p person) sign(message, namespace string, more ...string) string {
	p.t.Helper()
	return run(p.t, message, "ssh-keygen", append([]string{"-q", "-Y", "sign", "-f", p.file, "-n", namespace}, more...)...)
}

func verify(list, message, armored string) ([]string, error) {
	return sshsig.Verify(sshsig.ParseSigners(list), []byte(message), armored, sshsig.GitNamespace, now)
}

func TestEveryKindOfKeyIsRecognised(t *testing.T) {
	t.Parallel()
	for _, kind := range [][]string{{"ed25519"}, {"ecdsa", "-b", "256"}, {"ecdsa", "-b", "521"}, {"rsa", "-b", "2048"}} {
		ana := newPerson(t, kind...)
		for _, hash := range []string{"sha256", "sha512"} {
			sig := ana.sign("approve\n", "git", "-O", "hashalg="+hash)
			names, err := verify("ana,ana@example.com "+ana.line, "approve\n", sig)
			if err != nil || !slices.Equal(names, []string{"ana", "ana@example.com"}) {
				t.Errorf("%v %s: %v, %v", kind, hash, names, err)
			}
		}
	}
}

func TestSignatureOfAGitTagHolds(t *testing.T) {
	t.Parallel()
	ana, dir := newPerson(t, "ed25519"), t.TempDir()
	git := func(args ...string) string {
		return run(t, "", "git", append([]string{"-C", dir, "-c", "gpg.format=ssh", "-c", "user.signingkey=" + ana.file + ".pub"}, args...)...)
	}
	git("init", "-q")
	git("commit", "-q", "--allow-empty", "-m", "one")
	git("tag", "-s", "-m", "approve\n\nlooks good", "review")
	object := git("cat-file", "tag", "review")
	message, sig, ok := strings.Cut(object, "-----BEGIN SSH SIGNATURE-----")
	if !ok {
		t.Fatalf("the tag is not signed:\n%s", object)
	}
	names, err := verify("ana "+ana.line, message, "-----BEGIN SSH SIGNATURE-----"+sig)
	if err != nil || !slices.Equal(names, []string{"ana"}) {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := verify("ana "+ana.line, strings.Replace(message, "approve", "refuse", 1), "-----BEGIN SSH SIGNATURE-----"+sig); err == nil {
		t.Error("an altered message passed")
	}
}

func TestForgedSignaturesAreRefusedAndSaidWhy(t *testing.T) {
	t.Parallel()
	ana, eve := newPerson(t, "ed25519"), newPerson(t, "ed25519")
	const message = "approve\n"
	good := ana.sign(message, "git")
	list := "ana " + ana.line
	raw := func(change func([]byte) []byte) string {
		body := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(good), "-----BEGIN SSH SIGNATURE-----"), "-----END SSH SIGNATURE-----")
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(body), ""))
		if err != nil {
			t.Fatal(err)
		}
		return "-----BEGIN SSH SIGNATURE-----\n" + base64.StdEncoding.EncodeToString(change(b)) + "\n-----END SSH SIGNATURE-----\n"
	}
	if _, err := verify(list, message, raw(func(b []byte) []byte { return b })); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	for name, c := range map[string]struct{ list, message, sig, why string }{
		"another message":        {list, "refuse\n", good, "altered"},
		"a byte more":            {list, message + "\n", good, "altered"},
		"another key":            {list, message, eve.sign(message, "git"), "of nobody"},
		"nobody is allowed":      {"", message, good, "of nobody"},
		"another namespace":      {list, message, ana.sign(message, "file"), "namespace"},
		"empty":                  {list, message, "", "no SSH signature"},
		"PGP":                    {list, message, "-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n", "no SSH signature"},
		"no base64":              {list, message, "-----BEGIN SSH SIGNATURE-----\n!\n-----END SSH SIGNATURE-----\n", "no SSH signature"},
		"endless":                {list, message, strings.Repeat(good, 1000), "larger than"},
		"a bit of the signature": {list, message, raw(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), "altered"},
		"cut":                    {list, message, raw(func(b []byte) []byte { return b[:len(b)-10] }), ""},
		"more behind it":         {list, message, raw(func(b []byte) []byte { return append(b, 0) }), ""},
		"another version":        {list, message, raw(func(b []byte) []byte { b[9] = 2; return b }), "version 2"},
		"key swapped": {"eve " + eve.line, message, raw(func(b []byte) []byte {
			_, key, _ := strings.Cut(eve.line, " ")
			key, _, _ = strings.Cut(key, " ")
			k, err := base64.StdEncoding.DecodeString(key)
			if err != nil {
				t.Fatal(err)
			}
			return append(append(b[:14:14], k...), b[14+len(k):]...)
		}), "altered"},
	} {
		names, err := verify(c.list, c.message, c.sig)
		if len(names) > 0 || !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, %v; want %q", name, names, err, c.why)
		}
	}
}

func TestListSaysForWhatAndWhenAKeyIsAllowed(t *testing.T) {
	t.Parallel()
	ana := newPerson(t, "ed25519")
	sig := ana.sign("x", "git")
	for list, allowed := range map[string]bool{
		"ana " + ana.line:                                                     true,
		"# ana\n\n  ana\t" + ana.line + "\r\n":                                true,
		`"ana" ` + ana.line:                                                   true,
		`ana namespaces="git" ` + ana.line:                                    true,
		`ana namespaces="file,git" ` + ana.line:                               true,
		`ana namespaces="file" ` + ana.line:                                   false,
		`ana namespaces="*" ` + ana.line:                                      false,
		`ana valid-after="20261122",valid-before="20261124" ` + ana.line:      true,
		`ana valid-before="202611231200Z" ` + ana.line:                        false,
		`ana valid-before="20261123120001Z" ` + ana.line:                      true,
		`ana valid-after="20261124" ` + ana.line:                              false,
		`ana valid-before="soon" ` + ana.line:                                 false,
		"ana cert-authority " + ana.line:                                      false,
		"ana no-touch-required " + ana.line:                                   false,
		"*@example.com " + ana.line:                                           false,
		"!eve,ana " + ana.line:                                                false,
		ana.line:                                                              false,
		"ana":                                                                 false,
		"ana " + ana.line[:40]:                                                false,
		`ana namespaces="file" ` + ana.line + "\n" + "ana@work " + ana.line:   true,
		"\"ana " + ana.line:                                                   false,
		strings.Repeat("x ssh-ed25519 AAAA\n", 50) + "ana " + ana.line + "\n": true,
	} {
		names, err := verify(list, "x", sig)
		if (err == nil) != allowed || allowed && len(names) == 0 {
			t.Errorf("%q: %v, %v; want allowed %v", list, names, err, allowed)
		}
	}
}

func TestAliasesAreTheNamesOfOnesKeys(t *testing.T) {
	t.Parallel()
	ana, other, eve := newPerson(t, "ed25519"), newPerson(t, "ed25519"), newPerson(t, "ed25519")
	l := sshsig.ParseSigners("ana,ana@example.com " + ana.line + "\nana,ana@home " + other.line + "\neve " + eve.line + "\nbad\n")
	if got := l.Aliases("ana"); !slices.Equal(got, []string{"ana", "ana@example.com", "ana@home"}) {
		t.Errorf("aliases %v", got)
	}
	if got := l.Aliases("nobody"); !slices.Equal(got, []string{"nobody"}) {
		t.Errorf("aliases of nobody %v", got)
	}
	if len(l.Refused) != 1 || !strings.HasPrefix(l.Refused[0], "line 4: ") {
		t.Errorf("refused %v", l.Refused)
	}
	if got := l.Names(); !slices.Equal(got, []string{"ana", "ana@example.com", "ana@home", "eve"}) {
		t.Errorf("names %v", got)
	}
}

func FuzzParseSigners(f *testing.F) {
	f.Add("ana,ana@x namespaces=\"git\",valid-before=\"20261123\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl c\n", "-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----")
	f.Add("\"", "")
	f.Fuzz(func(t *testing.T, list, armored string) {
		l := sshsig.ParseSigners(list)
		if names, err := sshsig.Verify(l, []byte("x"), armored, sshsig.GitNamespace, now); err == nil {
			t.Errorf("a signature that nobody made is of %v", names)
		}
	})
}

package sops_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/sops"
)

// Those in testdata that end in .sops.* are what sops 3.13.3 made of plain.*.

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keys(t testing.TB, name string) sops.Keys {
	t.Helper()
	k, err := sops.ParseKeys(read(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func opened(t testing.TB, name string, text []byte, k sops.Keys) *sops.Opened {
	t.Helper()
	f, err := sops.Parse(name, text)
	if err != nil {
		t.Fatal(err)
	}
	o, err := f.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// meaning is what a document says, but for its comments.
func meaning(t testing.TB, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return v
}

func TestWhatSopsEncryptedIsRead(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"all.sops.yaml": "key.txt", "all.sops.json": "key.txt", "some.sops.yaml": "key.txt", "loose.sops.yaml": "key.txt"} {
		o := opened(t, name, read(t, name), keys(t, key))
		text, err := o.Text()
		if err != nil {
			t.Fatal(err)
		}
		plain := read(t, "plain"+filepath.Ext(name))
		if diff := cmp.Diff(meaning(t, plain), meaning(t, text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for key, want := range map[string]string{
			"npm-token": "CANARY-npm-0123456789", "aws.token": "CANARY-line-one\nCANARY-line-two\n", "aws.tls.key": "CANARY-dotted-key",
		} {
			if got, err := o.Value(key); got != want || err != nil {
				t.Errorf("%s: %s = %q, %v; want %q", name, key, got, err, want)
			}
		}
		if filepath.Ext(name) == ".yaml" {
			for _, c := range []string{"# who made this", "# the one of the robot", "# two of them", "# in a list", "# the end"} {
				if !strings.Contains(string(text), c) {
					t.Errorf("%s: the comment %q is lost in:\n%s", name, c, text)
				}
			}
		}
	}
}

func TestAnyOfTheRecipientsOpensAFile(t *testing.T) {
	t.Parallel()
	f, err := sops.Parse("all.sops.yaml", read(t, "all.sops.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := append(keys(t, "key.txt").Recipients(), keys(t, "other.txt").Recipients()...)
	if diff := cmp.Diff(want, f.Recipients()); diff != "" {
		t.Errorf("recipients (-want +got):\n%s", diff)
	}
	if _, err := f.Open(keys(t, "other.txt")); err != nil {
		t.Error(err)
	}
	f, err = sops.Parse("all.sops.json", read(t, "all.sops.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Open(keys(t, "other.txt"))
	wantFault(t, err, fault.Invalid, "is encrypted to age1lu5", "the key here is that of age17wl", "--secrets-key-file")
	_, err = f.Open(sops.Keys{})
	wantFault(t, err, fault.Invalid, "there is no age key", "--secrets-key-file")
}

// wantFault wants an error of a kind that says all of these, and no secret.
func wantFault(t testing.TB, err error, kind fault.Kind, says ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("error = %v (%s), want one that is %s", err, fault.KindOf(err), kind)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error does not say %q: %v", s, err)
		}
	}
	if strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), "AGE-SECRET-KEY-15") {
		t.Errorf("error tells a secret: %v", err)
	}
}

func TestWhatWasTamperedWithIsRefused(t *testing.T) {
	t.Parallel()
	all := string(read(t, "all.sops.yaml"))
	line := func(begin string) string {
		for _, l := range strings.Split(all, "\n") {
			if strings.HasPrefix(l, begin) {
				return l
			}
		}
		t.Fatalf("no line begins with %q", begin)
		return ""
	}
	value := func(key string) string {
		_, v, _ := strings.Cut(line(key), ": ")
		v, _, _ = strings.Cut(v, " #")
		return v
	}
	stranger := strings.ReplaceAll(all, "    lastmodified:", "        - recipient: age1x\n          enc: junk\n    lastmodified:")
	for name, c := range map[string]struct {
		text string
		says []string
		// opens: the change is harmless, or for another check to find.
		opens bool
	}{
		"a value moved to another key":   {text: strings.Replace(all, value("looks"), value("umlaut"), 1), says: []string{`"looks"`, "not encrypted for that place"}},
		"two values exchanged with keys": {text: strings.Replace(strings.Replace(all, "looks:", "x:", 1), "umlaut:", "looks:", 1), says: []string{"not encrypted for that place"}},
		"a value removed":                {text: strings.Replace(all, line("looks")+"\n", "", 1), says: []string{"checksum"}},
		"a list reversed":                {text: strings.Replace(all, "empty: \"\"\n", "", 1) + "\n", opens: true},
		"an unencrypted value changed":   {text: strings.Replace(all, "eu-west-1", "us-east-1", 1), says: []string{"checksum"}},
		"a value in the clear":           {text: strings.Replace(all, value("looks"), "123", 1), says: []string{`"looks" is not encrypted`}},
		"a value without encryption":     {text: strings.Replace(all, value("looks"), "no ENC at all", 1), says: []string{`"looks" is not encrypted`}},
		"another checksum":               {text: strings.Replace(all, value("    mac"), value("looks"), 1), says: []string{"checksum"}},
		"no checksum":                    {text: strings.Replace(all, line("    mac"), "    mac: \"\"", 1), says: []string{"no checksum"}},
		"another time":                   {text: strings.Replace(all, line("    lastmodified"), `    lastmodified: "2020-01-01T00:00:00Z"`, 1), says: []string{"checksum"}},
		"a wider rule":                   {text: strings.Replace(all, "unencrypted_suffix: _unencrypted", `unencrypted_regex: "looks|_unencrypted"`, 1), says: []string{"checksum"}},
		"two rules":                      {text: strings.Replace(all, "unencrypted_suffix: _unencrypted", "unencrypted_suffix: _x\n    encrypted_suffix: _y", 1), says: []string{"more than one rule"}},
		"a rule that is none":            {text: strings.Replace(all, "unencrypted_suffix: _unencrypted", "encrypted_regex: '('", 1), says: []string{"no regular expression"}},
		"the sum of less":                {text: strings.Replace(all, "    version:", "    mac_only_encrypted: true\n    version:", 1), says: []string{"checksum"}},
		"no metadata":                    {text: all[:strings.Index(all, "\nsops:")+1], says: []string{"not encrypted", "replace that"}},
		"a stranger among the keys":      {text: stranger, opens: true},
		"a comment changed":              {text: strings.Replace(all, "type:comment]", "type:str]", 1), opens: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.text == all {
				t.Fatal("nothing was changed")
			}
			f, err := sops.Parse("all.sops.yaml", []byte(c.text))
			if err == nil {
				_, err = f.Open(keys(t, "key.txt"))
			}
			if c.opens {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFault(t, err, fault.Invalid, append(c.says, "all.sops.yaml")...)
		})
	}
}

func TestADamagedDataKeyIsNoOtherKey(t *testing.T) {
	t.Parallel()
	text := string(read(t, "all.sops.json"))
	i := strings.Index(text, "-----END AGE")
	text = text[:i-8] + "AAAA" + text[i-4:]
	f, err := sops.Parse("all.sops.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Open(keys(t, "key.txt"))
	wantFault(t, err, fault.Invalid, "its data key cannot be read")
}

func TestKeysAreJudgedWithoutOpening(t *testing.T) {
	t.Parallel()
	f, err := sops.Parse("some.sops.yaml", read(t, "some.sops.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"npm-token", "aws.token", "aws.tls.key"} {
		if err := f.Check(key); err != nil {
			t.Error(err)
		}
	}
	wantFault(t, f.Check("npm-tokn"), fault.NotFound, `no key "npm-tokn"`, "npm-token, aws.token")
	wantFault(t, f.Check(""), fault.NotFound)
	wantFault(t, f.Check("aws"), fault.Invalid, `as "aws.token"`)
	wantFault(t, f.Check("looks"), fault.Invalid, "not encrypted", "replace it")
	f, err = sops.Parse("all.sops.yaml", read(t, "all.sops.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	wantFault(t, f.Check("number"), fault.Invalid, "type int", "in quotes")
	wantFault(t, f.Check("aws.region_unencrypted"), fault.Invalid, "not encrypted")
	wantFault(t, f.Check("nothing"), fault.Invalid, "not encrypted")
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	t.Parallel()
	to := keys(t, "key.txt").Recipients()
	for _, name := range []string{"plain.yaml", "plain.json"} {
		for _, rule := range []sops.Rule{{}, {EncryptedRegex: "^(aws|npm-token)$"}, {EncryptedSuffix: "n", MACOnlyEncrypted: true}} {
			out, err := sops.Seal(name, read(t, name), sops.How{Recipients: to, Rule: rule})
			if err != nil {
				t.Fatal(err)
			}
			if rule == (sops.Rule{}) {
				for _, hidden := range []string{"CANARY", "two of them", "the end", "1234567890", "2026-01-02"} {
					if strings.Contains(string(out), hidden) {
						t.Errorf("%s holds %q in the clear:\n%s", name, hidden, out)
					}
				}
			}
			text, err := opened(t, name, out, keys(t, "key.txt")).Text()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(meaning(t, read(t, name)), meaning(t, text)); diff != "" {
				t.Errorf("%s, %+v (-want +got):\n%s", name, rule, diff)
			}
			again, err := sops.Seal(name, text, sops.How{Recipients: to, Rule: rule})
			if err != nil {
				t.Fatal(err)
			}
			twice, err := opened(t, name, again, keys(t, "key.txt")).Text()
			if err != nil || string(twice) != string(text) {
				t.Errorf("%s changes when it is written again, %v:\n%s", name, err, cmp.Diff(string(text), string(twice)))
			}
		}
	}
}

// TestSopsReadsWhatIsWritten needs the program sops: go install
// github.com/getsops/sops/v3/cmd/sops@v3.13.3
func TestSopsReadsWhatIsWritten(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("sops")
	if err != nil {
		// Debian has no package of it; what it wrote is in testdata and is read without it.
		t.Skip("there is no program sops")
	}
	for _, name := range []string{"plain.yaml", "plain.json"} {
		for i, rule := range []sops.Rule{{}, {EncryptedRegex: "^(aws|npm-token)$"}, {EncryptedSuffix: "n", MACOnlyEncrypted: true}} {
			out, err := sops.Seal(name, read(t, name), sops.How{Recipients: keys(t, "key.txt").Recipients(), Rule: rule})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), fmt.Sprint(i)+filepath.Ext(name))
			if err := os.WriteFile(file, out, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "decrypt", file)
			cmd.Env = append(os.Environ(), "SOPS_AGE_KEY="+string(read(t, "key.txt")))
			text, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("sops: %v\n%s", err, text)
			}
			if diff := cmp.Diff(meaning(t, read(t, name)), meaning(t, text)); diff != "" {
				t.Errorf("%s, %+v (-want +got):\n%s", name, rule, diff)
			}
			if rule == (sops.Rule{}) && strings.Contains(string(text), "ENC[") {
				t.Errorf("sops could not read the comments:\n%s", text)
			}
		}
	}
}

func TestWhatSopsCannotSayIsRefused(t *testing.T) {
	t.Parallel()
	to := keys(t, "key.txt").Recipients()
	for text, says := range map[string]string{
		"":                               "empty",
		"- a\n- b\n":                     "no mapping",
		"a: 1\n---\nb: 2\n":              "more than one document",
		"a: &x 1\nb: *x\n":               "an anchor",
		"1: a\n":                         "a name that is no text",
		"a: 1\na: 2\n":                   "there twice",
		"a: [\n":                         "line",
		"a: 18446744073709551615\n":      "in quotes",
		"sops: x\n":                      "use another",
		"a: !!int CANARY\n":              "kind",
		strings.Repeat("a", 300<<10):     "most is",
		strings.Repeat("a: {", 80) + "1": "",
		"a: " + strings.Repeat("[", 70) + strings.Repeat("]", 70) + "\n": "levels",
	} {
		_, err := sops.Seal("x.yaml", []byte(text), sops.How{Recipients: to})
		wantFault(t, err, fault.Invalid, "x.yaml", says)
	}
	for text, says := range map[string]string{
		`[]`: "no mapping", `{"a": 1} x`: "", `{"a": 1`: "too early", `{"a": 1, "a": 2}`: "twice", `{"a": 1e999}`: "too large", ``: "too early",
	} {
		_, err := sops.Seal("x.json", []byte(text), sops.How{Recipients: to})
		wantFault(t, err, fault.Invalid, "x.json", says)
	}
	_, err := sops.Seal("x.toml", nil, sops.How{Recipients: to})
	wantFault(t, err, fault.Invalid, ".yaml")
	_, err = sops.Seal("x.yaml", []byte("a: b\n"), sops.How{})
	wantFault(t, err, fault.Invalid, "to nobody")
	_, err = sops.Seal("x.yaml", []byte("a: b\n"), sops.How{Recipients: []string{strings.Fields(string(read(t, "key.txt")))[4]}})
	wantFault(t, err, fault.Invalid, "a private key was given")
}

func TestFilesOfOtherKeysAreRefusedByName(t *testing.T) {
	t.Parallel()
	all := string(read(t, "all.sops.yaml"))
	for add, says := range map[string]string{
		"    key_groups:\n        - age: []\n":           "key_groups",
		"    encrypted_comment_regex: x\n":               "encrypted_comment_regex",
		"    pgp: 7\n    age: 7\n    lastmodified: []\n": "",
	} {
		_, err := sops.Parse("x.yaml", []byte(all+add))
		wantFault(t, err, fault.Invalid, "x.yaml", says)
	}
	f, err := sops.Parse("x.yaml", []byte(all+"    pgp:\n        - fp: ABC\n          enc: x\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(keys(t, "key.txt")); err != nil {
		t.Error(err)
	}
	_, err = f.How()
	wantFault(t, err, fault.Invalid, "pgp", "locked out")
	i, j := strings.Index(all, "    age:"), strings.Index(all, "    lastmodified:")
	_, err = sops.Parse("x.yaml", []byte(all[:i]+all[j:]))
	wantFault(t, err, fault.Invalid, "not encrypted to any age key")
}

func TestAFileKnowsItsPlace(t *testing.T) {
	t.Parallel()
	out, err := sops.Seal("secrets/prod.sops.yaml", []byte("_path: secrets/prod.sops.yaml\ntoken: CANARY-0001\n"), sops.How{Recipients: keys(t, "key.txt").Recipients()})
	if err != nil {
		t.Fatal(err)
	}
	if err := opened(t, "secrets/prod.sops.yaml", out, keys(t, "key.txt")).CheckPath(); err != nil {
		t.Error(err)
	}
	wantFault(t, opened(t, "secrets/dev.sops.yaml", out, keys(t, "key.txt")).CheckPath(), fault.Invalid, "secrets/dev.sops.yaml is a copy of secrets/prod.sops.yaml")
	if err := opened(t, "all.sops.yaml", read(t, "all.sops.yaml"), keys(t, "key.txt")).CheckPath(); err != nil {
		t.Error(err)
	}
}

func TestKeysArePrintedAsStars(t *testing.T) {
	t.Parallel()
	k := keys(t, "key.txt")
	raw, err := json.Marshal(map[string]any{"k": k})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s %x", k, k, &k, k, k), string(raw)} {
		if strings.Trim(s, `*& {"k:}`) != "" {
			t.Errorf("printed as %s", s)
		}
	}
	_, err = sops.ParseKeys([]byte("AGE-SECRET-KEY-15CANARY"))
	wantFault(t, err, fault.Invalid, "no private age key")
	_, err = sops.ParseKeys(nil)
	wantFault(t, err, fault.Invalid, "no private age key")
	private, to, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	made, err := sops.ParseKeys([]byte(private + "\r\n"))
	if err != nil || !slices.Equal(made.Recipients(), []string{to}) {
		t.Errorf("a key that was made is that of %v, %v; want %s", made.Recipients(), err, to)
	}
}

func TestRulesSayToWhom(t *testing.T) {
	t.Parallel()
	a, b := keys(t, "key.txt").Recipients()[0], keys(t, "other.txt").Recipients()[0]
	rules, err := sops.ParseRules([]byte(fmt.Sprintf(`creation_rules:
  - path_regex: ^secrets/prod
    age: %s, %s
    encrypted_regex: ^x
  - path_regex: pgp
    pgp: ABC
  - age: [%s]
`, a, b, a)))
	if err != nil {
		t.Fatal(err)
	}
	how, ok, err := rules.For("secrets/prod.sops.yaml")
	want := sops.How{Recipients: []string{a, b}, Rule: sops.Rule{EncryptedRegex: "^x"}}
	if diff := cmp.Diff(want, how); diff != "" || !ok || err != nil {
		t.Errorf("%v, %v (-want +got):\n%s", ok, err, diff)
	}
	if how, ok, err := rules.For("secrets/dev.sops.yaml"); len(how.Recipients) != 1 || !ok || err != nil {
		t.Errorf("For = %+v, %v, %v", how, ok, err)
	}
	_, _, err = rules.For("pgp.yaml")
	wantFault(t, err, fault.Invalid, "pgp", "use sops")
	if got := rules.Strangers("secrets/dev.sops.yaml", []string{a, b}); !slices.Equal(got, []string{b}) {
		t.Errorf("strangers = %v, want %s", got, b)
	}
	for text, says := range map[string]string{
		"creation_rules: 7": "a list", "creation_rules:\n  - age: age1nonsense": "no recipient", "creation_rules:\n  - path_regex: (": "rule 1", "\t": "",
	} {
		_, err := sops.ParseRules([]byte(text))
		wantFault(t, err, fault.Invalid, sops.RulesFile, says)
	}
}

func TestAnyTextsAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	k := keys(t, "key.txt")
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOfN(rapid.StringMatching(`[a-zA-Z0-9_.: #-]{1,12}`).Filter(func(s string) bool { return s != "sops" && !strings.HasSuffix(s, "_unencrypted") }),
			rapid.String(), 1, 5).Draw(t, "values")
		name := rapid.SampledFrom([]string{"x.yaml", "x.json"}).Draw(t, "name")
		var plain []byte
		var err error
		if name == "x.yaml" {
			plain, err = yaml.Marshal(want)
		} else {
			plain, err = json.Marshal(want)
		}
		if err != nil {
			t.Fatal(err)
		}
		var wrote map[string]any
		if yaml.Unmarshal(plain, &wrote) != nil || name == "x.yaml" && len(wrote) != len(want) {
			// The fuzzer draws bytes that are no text, which YAML writes as something else.
			t.Skip("no text of this kind in YAML")
		}
		out, err := sops.Seal(name, plain, sops.How{Recipients: k.Recipients()})
		if err != nil {
			t.Skip(err) // what YAML does not take for a name or a text
		}
		f, err := sops.Parse(name, out)
		if err != nil {
			t.Fatal(err)
		}
		o, err := f.Open(k)
		if err != nil {
			t.Fatal(err)
		}
		text, err := o.Text()
		if err != nil {
			t.Fatal(err)
		}
		again, err := sops.Seal(name, text, sops.How{Recipients: k.Recipients()})
		if err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		if f, err = sops.Parse(name, again); err != nil {
			t.Fatal(err)
		}
		if o, err = f.Open(k); err != nil {
			t.Fatal(err)
		}
		for key, v := range want {
			if name == "x.yaml" {
				v, _ = wrote[key].(string) // its writer loses blank lines at the end
			}
			if v == "" {
				continue // stays in the clear, as sops has it
			}
			if got, err := o.Value(key); got != v || err != nil {
				t.Fatalf("%q = %q, %v; want %q", key, got, err, v)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"all.sops.yaml", "all.sops.json", "loose.sops.yaml"} {
		f.Add(string(read(f, name)), "aws.token")
	}
	f.Add("sops: {age: [{recipient: x, enc: y}], mac: z}\na: &a [*a]\n", "a.b.c")
	f.Add("? [a]\n: b\nsops: []", "")
	f.Add("{\"a\": {\"a\": {\"a\": 1}}, \"sops\": 1}", "a.a.a.a")
	k := keys(f, "key.txt")
	f.Fuzz(func(t *testing.T, text, key string) {
		for _, name := range []string{"x.yaml", "x.json"} {
			file, err := sops.Parse(name, []byte(text))
			if err != nil {
				if !fault.Is(err, fault.Invalid) {
					t.Fatalf("%v is %s", err, fault.KindOf(err))
				}
				continue
			}
			_ = file.Check(key)
			if o, err := file.Open(k); err == nil {
				_, _ = o.Value(key)
				_, _ = o.Text()
			}
		}
		_, _ = sops.ParseRules([]byte(text))
	})
}

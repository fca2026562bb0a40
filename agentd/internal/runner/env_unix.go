//go:build unix

package runner

import "os"

// systemEnv is what a task needs of the machine to find programs and to print.
func systemEnv() []string {
	path, lang := os.Getenv("PATH"), os.Getenv("LANG")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	if lang == "" {
		lang = "C.UTF-8"
	}
	return []string{"PATH=" + path, "LANG=" + lang}
}

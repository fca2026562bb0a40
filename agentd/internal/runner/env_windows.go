package runner

import "os"

// systemEnv is what a task needs of the machine to find programs and to start them.
func systemEnv() []string {
	var env []string
	for _, name := range []string{"PATH", "PATHEXT", "SystemRoot", "SystemDrive", "ComSpec", "windir", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

package plugins

import "io"

// UnpackTar unpacks with limits of the test's choice.
func UnpackTar(r io.Reader, dir string, files int, bytes int64) error {
	return unpackTar(r, dir, limits{files, bytes})
}

package sops

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"time"
)

const (
	dataKeySize = 32
	nonceSize   = 32

	typeString  = "str"
	typeComment = "comment"
)

// comment is a decrypted value that is none.
type comment string

// errCipher says nothing of why: whoever made the text has not earned it.
var errCipher = errors.New("it cannot be decrypted")

// additional is the additional data of what is at a path.
func additional(path []string) string { return strings.Join(path, ":") + ":" }

func decrypt(text string, key []byte, path []string) (any, error) {
	return openWith(text, key, additional(path))
}

// openWith decrypts ENC[…] and returns what it holds: a string, an int, a float64, a
// bool, a time, or a comment.
func openWith(text string, key []byte, additional string) (any, error) {
	m := encrypted.FindStringSubmatch(text)
	if m == nil {
		return nil, errCipher
	}
	var parts [3][]byte
	for i := range parts {
		var err error
		if parts[i], err = base64.StdEncoding.DecodeString(m[i+1]); err != nil {
			return nil, errCipher
		}
	}
	data, nonce, tag := parts[0], parts[1], parts[2]
	if len(nonce) == 0 || len(tag) != aes.BlockSize {
		return nil, errCipher
	}
	gcm, err := sealer(key, len(nonce))
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, nonce, append(data, tag...), []byte(additional))
	if err != nil {
		return nil, errCipher
	}
	return typed(string(plain), m[4])
}

func sealer(key []byte, nonce int) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, errCipher
	}
	return cipher.NewGCMWithNonceSize(block, nonce)
}

func typed(plain, kind string) (v any, err error) {
	switch kind {
	case typeString, "bytes":
		return plain, nil
	case typeComment:
		return comment(plain), nil
	case "int":
		v, err = strconv.Atoi(plain)
	case "float":
		v, err = strconv.ParseFloat(plain, 64)
	case "bool":
		v, err = strconv.ParseBool(plain)
	case "time":
		v, err = time.Parse(time.RFC3339Nano, plain)
	default:
		err = errCipher
	}
	if err != nil {
		return nil, errCipher
	}
	return v, nil
}

// sealWith makes ENC[…] of a value. What is empty stays so, as sops has it.
func sealWith(v any, kind string, key []byte, additional string) (string, error) {
	plain, err := bytesOf(v)
	if err != nil || len(plain) == 0 {
		return "", err
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails
	gcm, err := sealer(key, nonceSize)
	if err != nil {
		return "", err
	}
	out := gcm.Seal(nil, nonce, plain, []byte(additional))
	cut := len(out) - aes.BlockSize
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("ENC[AES256_GCM,data:%s,iv:%s,tag:%s,type:%s]", b64(out[:cut]), b64(nonce), b64(out[cut:]), kind), nil
}

// kindOf is the type that a value's ciphertext states.
func kindOf(v any) string {
	switch v.(type) {
	case int:
		return "int"
	case float64:
		return "float"
	case bool:
		return "bool"
	case time.Time:
		return "time"
	}
	return typeString
}

// bytesOf is a value as it is encrypted and summed up.
func bytesOf(v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return []byte(v), nil
	case int:
		return strconv.AppendInt(nil, int64(v), 10), nil
	case float64:
		return strconv.AppendFloat(nil, v, 'f', -1, 64), nil
	case bool:
		if v { // as Python wrote it
			return []byte("True"), nil
		}
		return []byte("False"), nil
	case time.Time:
		return v.MarshalText()
	}
	return nil, fmt.Errorf("a value of this kind cannot be encrypted: write it in quotes")
}

// checksum is the MAC of a file while its values go by.
type checksum struct {
	hash          hash.Hash
	onlyEncrypted bool
}

// onlyEncryptedStart begins a sum over encrypted values alone, SHA-256 of "sops".
const onlyEncryptedStart = "\x8a\x3f\xd2\xad\x54\xce\x66\x52\x7b\x10\x34\xf3\xd1\x47\xbe\x0b\x0b\x97\x5b\x3b\xf4\x4f\x72\xc6\xfd\xad\xec\x81\x76\xf2\x7d\x69"

func newSum(onlyEncrypted bool) checksum {
	c := checksum{hash: sha512.New(), onlyEncrypted: onlyEncrypted}
	if onlyEncrypted {
		c.hash.Write([]byte(onlyEncryptedStart))
	}
	return c
}

func (c checksum) add(v any, encrypted bool) error {
	if c.onlyEncrypted && !encrypted {
		return nil
	}
	b, err := bytesOf(v)
	c.hash.Write(b)
	return err
}

func (c checksum) String() string { return fmt.Sprintf("%X", c.hash.Sum(nil)) }

func (c checksum) is(mac string) bool { return hmac.Equal([]byte(c.String()), []byte(mac)) }

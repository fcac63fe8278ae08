package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// place returns the flags that create or import a pool of the kind that HOLDFAST_POOL names, below dir: dedup (the default),
// encrypted, standard, striped (dedup over six folders, 4+2), object, or striped-object (three buckets, 2+1). Buckets are of a real
// S3 server that runs as long as the test.
func place(t *testing.T, dir string) []string {
	t.Helper()
	switch kind := os.Getenv("HOLDFAST_POOL"); kind {
	case "", "dedup":
		return []string{"--kind", "dedup", "--path", dir}
	case "encrypted":
		return []string{"--kind", "dedup", "--path", dir, "--encrypt", "--key-file", filepath.Join(filepath.Dir(dir), "pool.key")}
	case "standard":
		return []string{"--kind", "standard", "--path", dir}
	case "striped":
		args := []string{"--kind", "dedup", "--stripe", "4+2"}
		for i := range 6 {
			args = append(args, "--path", filepath.Join(dir, "disk"+strconv.Itoa(i)))
		}
		return args
	case "object":
		return append(bucketFlags(t, dir), "--bucket", "backups")
	case "striped-object":
		return append(bucketFlags(t, dir), "--bucket", "backup-a", "--bucket", "backup-b", "--bucket", "backup-c", "--stripe", "2+1")
	default:
		t.Fatalf("HOLDFAST_POOL=%s is no kind that the tests know", kind)
		return nil
	}
}

// bucketFlags starts an S3 server and returns the flags that reach it.
func bucketFlags(t *testing.T, dir string) []string {
	t.Helper()
	return bucketFlagsOf(t, s3test.Start(t), filepath.Dir(dir), "backups", "backup-a", "backup-b", "backup-c")
}

// bucketFlagsOf makes buckets on a server and returns the flags that reach it; keys are kept as files in base.
func bucketFlagsOf(t *testing.T, s *s3test.Server, base string, buckets ...string) []string {
	t.Helper()
	for name, text := range map[string]string{"ca.pem": string(s.CA.PEM), "ak": s.AccessKey, "sk": s.SecretKey} {
		if err := os.WriteFile(filepath.Join(base, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range buckets {
		c := s3store.Config{Endpoint: s.URL, Bucket: b, CA: s.CA.PEM, AccessKey: s3store.Secret(s.AccessKey), SecretKey: s3store.Secret(s.SecretKey)}
		if err := s3store.MakeBucket(t.Context(), c, false); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--kind", "object", "--endpoint", s.URL, "--ca", filepath.Join(base, "ca.pem"), "--access-key-file", filepath.Join(base, "ak"),
		"--secret-key-file", filepath.Join(base, "sk")}
}

// An S3 server for tests: the one behind `rclone serve s3`, in memory, with signatures checked.
//
// It listens on a free port of the address S3_ADDRESS, by default the loopback interface's, and
// prints its URL. The one key it knows comes from the environment: S3_ACCESS_KEY_ID and
// S3_SECRET_ACCESS_KEY. It ends with its parent, when standard input is closed.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
)

// storage reads an empty delimiter as none, as AWS does.
type storage struct{ *s3mem.Backend }

func (s storage) ListBucket(
	ctx context.Context, bucket string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage,
) (*gofakes3.ObjectList, error) {
	wanted := *prefix
	wanted.HasDelimiter = wanted.Delimiter != ""
	return s.Backend.ListBucket(ctx, bucket, &wanted, page)
}

// version is the key of a request's versionId in its context.
type version struct{}

// HeadObject returns the version that is requested, and the ID of a version only of buckets that
// have them, as AWS does. The library reads neither for a HEAD request.
func (s storage) HeadObject(ctx context.Context, bucket, name string) (*gofakes3.Object, error) {
	if id, _ := ctx.Value(version{}).(string); id != "" {
		return s.HeadObjectVersion(bucket, name, gofakes3.VersionID(id))
	}
	object, err := s.Backend.HeadObject(ctx, bucket, name)
	if err != nil {
		return nil, err
	}
	config, err := s.VersioningConfiguration(bucket)
	if !config.Enabled() {
		object.VersionID = ""
	}
	return object, err
}

func withVersion(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Query().Get("versionId")
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), version{}, id)))
	})
}

func main() {
	key, secret := os.Getenv("S3_ACCESS_KEY_ID"), os.Getenv("S3_SECRET_ACCESS_KEY")
	if key == "" || secret == "" {
		log.Fatal("set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY")
	}
	address := os.Getenv("S3_ADDRESS")
	if address == "" {
		address = "127.0.0.1"
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		log.Fatal(err)
	}
	server := gofakes3.New(storage{s3mem.New()}, gofakes3.WithV4Auth(map[string]string{key: secret}))
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, withVersion(server.Server())))
}

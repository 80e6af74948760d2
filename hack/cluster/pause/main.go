// pause is the first process of every pod: it holds the pod's namespaces, reaps orphans and ends on a signal.
//
// With a word after its name it is a small tool that the cluster's own tests run in pods:
//
//	pause serve ADDRESS TEXT      answer every HTTP request with TEXT
//	pause fetch URL SECONDS       print the answer of URL, tried again until SECONDS have passed
//	pause write FILE TEXT         write TEXT and flush it to the disk
//	pause read FILE               print FILE
//	pause whoami                  print uid, gid and host name
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 1 {
		hold()
	}
	if err := command(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "pause:", err)
		os.Exit(1)
	}
}

func hold() {
	ended := make(chan os.Signal, 16)
	stop := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	for {
		select {
		case <-stop:
			os.Exit(0)
		case <-ended:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

func command(name string, args []string) error {
	want := map[string]int{"serve": 2, "fetch": 2, "write": 2, "read": 1, "whoami": 0}
	if n, known := want[name]; !known || n != len(args) {
		return fmt.Errorf("unknown command %q with %d arguments", name, len(args))
	}
	switch name {
	case "serve":
		go hold()
		return serve(args[0], args[1])
	case "fetch":
		return fetch(args[0], args[1])
	case "write":
		return write(args[0], args[1])
	case "read":
		text, err := os.ReadFile(args[0])
		fmt.Print(string(text))
		return err
	}
	host, err := os.Hostname()
	fmt.Printf("%d:%d@%s\n", os.Getuid(), os.Getgid(), host)
	return err
}

func serve(address, text string) error {
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
	return http.ListenAndServe(address, http.HandlerFunc(answer))
}

func fetch(url, seconds string) error {
	limit, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(time.Duration(limit * float64(time.Second)))
	client := http.Client{Timeout: 2 * time.Second}
	for {
		response, err := client.Get(url)
		if err == nil {
			defer response.Body.Close()
			_, err = io.Copy(os.Stdout, response.Body)
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func write(path, text string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err = file.WriteString(text); err == nil {
		err = file.Sync()
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

// A client of Go's crypto/tls for the tests in a virtual machine. It asks for each path twice on one
// connection over HTTP/1.1, prints the SHA-256 of each body, and reads the body in one piece.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
)

func main() {
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
	}}
	for _, url := range os.Args[1:] {
		for i := 0; i < 2; i++ {
			request, err := http.NewRequest("GET", url, nil)
			check(err)
			reused := false
			request = request.WithContext(httptrace.WithClientTrace(request.Context(), &httptrace.ClientTrace{
				GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
			}))
			response, err := client.Do(request)
			check(err)
			hash := sha256.New()
			_, err = io.Copy(hash, response.Body)
			check(err)
			check(response.Body.Close())
			if i > 0 && !reused {
				check(fmt.Errorf("the connection was not kept"))
			}
			fmt.Printf("%x\n", hash.Sum(nil))
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

// The number of a descriptor that reports go to is used again, for a file of the program's. No report is written into
// it.
//   stderr      standard error was closed, the file is opened next
//   log         the descriptor of a json_handler was closed, and the file has its number
//   redirected  standard error goes to the file on purpose, which is opened for appending
//   saved       standard error goes to the file for a while
// Prints the file.
#include <pmr_debug/pmr_debug.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

void free_twice(pmr_debug::report_handler* handler) {
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = handler});
    void* const p = heap.allocate(64);
    heap.deallocate(p, 64);
    heap.deallocate(p, 64);
}

void replace(int descriptor, const char* path, int flags) {
    const int file = ::open(path, flags);
    if (file != descriptor) {
        ::dup2(file, descriptor);
        ::close(file);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view how = argc > 1 ? argv[1] : "stderr";
    ::setsid();  // no terminal to turn to
    char path[] = "/tmp/pmr_debug_data_XXXXXX";
    const int made = ::mkstemp(path);
    if (made < 0 || ::write(made, "data\n", 5) != 5) {
        return 1;
    }
    ::close(made);
    if (how == "log") {
        int ends[2];
        if (::pipe(ends) != 0) {
            return 1;
        }
        pmr_debug::json_handler to_log(ends[1]);
        replace(ends[1], path, O_RDWR);
        free_twice(&to_log);
    } else {
        pmr_debug::text_handler go_on({.abort_on_error = false});
        if (how == "saved") {
            const int before = ::dup(2);
            replace(2, path, O_RDWR);
            free_twice(&go_on);
            ::dup2(before, 2);
        } else {
            ::close(2);
            replace(2, path, how == "redirected" ? O_WRONLY | O_APPEND : O_RDWR);
            free_twice(&go_on);
        }
    }
    std::FILE* const file = std::fopen(path, "r");
    for (int c = 0; file != nullptr && (c = std::fgetc(file)) != EOF;) {
        std::putchar(c);
    }
    ::unlink(path);
}

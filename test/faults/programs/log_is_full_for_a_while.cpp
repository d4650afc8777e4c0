// A JSON log is cut in the middle of a line, as the disk is full, and there is room again later. Each line written then
// can be read. Prints the log.
#include <pmr_debug/pmr_debug.hpp>

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

namespace {

void limit_files_to(rlim_t bytes) {
    const rlimit most{.rlim_cur = bytes, .rlim_max = RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &most);
}

}  // namespace

int main() {
    std::FILE* const file = std::tmpfile();
    if (file == nullptr) {
        return 1;
    }
    const int log = ::fileno(file);
    {
        pmr_debug::json_handler to_log(log);
        pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &to_log});
        void* const p = heap.allocate(8);
        heap.deallocate(p, 8);
        limit_files_to(100);
        heap.deallocate(p, 8);  // cut after 100 bytes
        heap.deallocate(p, 8);  // nothing of it
        limit_files_to(RLIM_INFINITY);
        heap.deallocate(p, 8);
        heap.deallocate(p, 8);
    }
    ::lseek(log, 0, SEEK_SET);
    char piece[512];
    for (ssize_t n = 0; (n = ::read(log, piece, sizeof piece)) > 0;) {
        std::fwrite(piece, 1, static_cast<std::size_t>(n), stdout);
    }
}

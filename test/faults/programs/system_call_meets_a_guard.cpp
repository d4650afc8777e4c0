// A system call does not fault where a load or store would: it fails with EFAULT, or comes short. Nothing is reported,
// and docs/faults.md says so. Prints what the calls gave.
#include <pmr_debug/pmr_debug.hpp>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

int main() {
    pmr_debug::end_of_page_resource fence({.name = "fence"});
    int ends[2];
    if (::pipe(ends) != 0) {
        return 1;
    }
    const std::string big(5000, 'y');
    if (::write(ends[1], big.data(), big.size()) < 0) {
        return 1;
    }
    const char* volatile late = nullptr;
    {
        std::pmr::vector<char> b(4096, 'x', &fence);
        std::printf("read %zd, ", ::read(ends[0], b.data(), 4100));  // four bytes too many
    }
    {
        const std::pmr::vector<char> c(100'000, 'x', &fence);
        late = c.data();
    }
    errno = 0;
    const ssize_t written = ::write(ends[1], late, 100);  // after the free
    std::printf("write %zd %s", written, errno == EFAULT ? "EFAULT" : "");
}

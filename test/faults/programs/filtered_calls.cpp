// A filter of system calls, as sandboxes install it, refuses what the argument says. Large blocks are allocated,
// written and freed, over and over; the memory must go back all the same.

#include <pmr_debug/pmr_debug.hpp>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory_resource>
#include <string>
#include <vector>

namespace {

using namespace pmr_debug;

bool refuse(const std::vector<unsigned>& calls) {
    std::vector<sock_filter> program{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
    for (const unsigned call : calls) {
        program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
        program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

long resident_mebibytes() {
    std::FILE* const f = std::fopen("/proc/self/statm", "r");
    long all = 0;
    long resident = 0;
    if (f == nullptr || std::fscanf(f, "%ld %ld", &all, &resident) != 2) {
        std::exit(3);
    }
    std::fclose(f);
    return resident / 256;
}

long most = 0;

void churn(std::pmr::memory_resource& r, std::size_t bytes) {
    for (int i = 0; i < 20; ++i) {
        void* const p = r.allocate(bytes);
        std::memset(p, 1, bytes);
        r.deallocate(p, bytes);
        most = std::max(most, resident_mebibytes());
    }
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    std::vector<unsigned> calls;
    calls.reserve(4);  // else gcc 12 warns falsely at -O2
    if (what.find("madvise") != std::string::npos) {
        calls.push_back(__NR_madvise);
        calls.push_back(__NR_process_madvise);
    }
    if (what.find("mprotect") != std::string::npos) {
        calls.push_back(__NR_mprotect);
    }
    if (what.find("mremap") != std::string::npos) {
        calls.push_back(__NR_mremap);
    }
    if (!refuse(calls)) {
        std::puts("may not");
        return 0;
    }
    collecting_handler errors;
    {
        page_resource pages({.handler = &errors});
        general_purpose_resource heap(&pages, {.handler = &errors});
        end_of_page_resource end_of_page({.handler = &errors, .quarantine_bytes = std::size_t{1} << 20});
        end_of_page_resource over_pages(&pages, {.handler = &errors, .quarantine_bytes = std::size_t{1} << 20});
        std::pmr::memory_resource* const all[] = {&pages, &heap, &end_of_page, &over_pages};
        for (std::pmr::memory_resource* const r : all) {
            churn(*r, std::size_t{8} << 20);
            churn(*r, 100'000);
            churn(*r, 100);
        }
        if (what.find("mprotect") == std::string::npos) {  // else its records could not be protected
            basic_general_purpose_resource<thorough_policy> thorough(&pages, {.handler = &errors});
            churn(thorough, std::size_t{8} << 20);
            churn(thorough, 100'000);
            churn(thorough, 100);
        }
        void* const kept = pages.allocate(std::size_t{8} << 20);
        std::memset(kept, 1, std::size_t{8} << 20);
        const long before = resident_mebibytes();
        const bool released = pages.release(kept, std::size_t{8} << 20);
        std::printf("released %d: %ld MiB\n", released, before - resident_mebibytes());
        pages.deallocate(kept, std::size_t{8} << 20);
    }
    std::printf("errors %zu, most %ld MiB\n", errors.count(), most);
}

// What the library's own tables and ranges take from a process that has limits, locks its memory, or asks for more than
// there is. The first argument says which; each prints what the test looks at.

#include <pmr_debug/pmr_debug.hpp>

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <new>
#include <string>
#include <vector>

namespace {

using namespace pmr_debug;

constexpr std::size_t mebibyte = std::size_t{1} << 20;

/// A line of /proc/self/status or /proc/meminfo, in MiB.
long mebibytes_of(const char* file, const char* key) {
    std::FILE* const f = std::fopen(file, "r");
    char line[256];
    long result = -1;
    while (f != nullptr && std::fgets(line, sizeof line, f) != nullptr) {
        if (std::strncmp(line, key, std::strlen(key)) == 0) {
            result = std::atol(line + std::strlen(key)) / 1024;
        }
    }
    if (f != nullptr) {
        std::fclose(f);
    }
    return result;
}

void set_limit(decltype(RLIMIT_AS) which, const char* megabytes) {
    const rlimit limit{std::strtoull(megabytes, nullptr, 0) * mebibyte,
                       std::strtoull(megabytes, nullptr, 0) * mebibyte};
    if (::setrlimit(which, &limit) != 0) {
        std::perror("setrlimit");
        std::exit(3);
    }
}

/// The largest mapping that the process can have, MiB.
std::size_t largest_mapping() {
    std::size_t low = 0;
    std::size_t high = std::size_t{1} << 40;
    while (high - low > mebibyte) {
        const std::size_t middle = (low + high) / 2;
        void* const p =
            ::mmap(nullptr, middle, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) {
            ::munmap(p, middle);
            low = middle;
        } else {
            high = middle;
        }
    }
    return low / mebibyte;
}

/// Blocks that live together, of sizes as in a program: \p bytes of them.
void live(std::pmr::memory_resource& r, std::size_t bytes) {
    std::vector<std::pair<void*, std::size_t>> blocks;
    std::size_t size = 24;
    for (int round = 0; round < 3; ++round) {
        for (std::size_t sum = 0; sum < bytes; sum += size) {
            size = size * 7 % 8'191 + 16;
            blocks.emplace_back(r.allocate(size), size);
            std::memset(blocks.back().first, 1, size);
        }
        for (const auto& [p, n] : blocks) {
            r.deallocate(p, n);
        }
        blocks.clear();
    }
}

template <class Resource, class... Upstream>
std::string try_one(std::size_t live_bytes, Upstream*... upstream) {
    collecting_handler errors;
    try {
        Resource r(upstream..., {.handler = &errors});
        void* const p = r.allocate(100);
        r.deallocate(p, 100);
        r.deallocate(p, 100);
        if (errors.count() != 1) {
            return "not told";
        }
        if (errors[0].text.find("main") == std::string_view::npos) {
            return "no trace";
        }
        live(r, live_bytes);
        return errors.count() == 1 ? "ok" : "false report";
    } catch (const std::bad_alloc&) {
        return "bad_alloc";
    }
}

int address_space(const char* megabytes, std::size_t live_bytes) {
    set_limit(RLIMIT_AS, megabytes);
    page_resource pages;
    std::printf("pages %s, heap %s, tracking %s, canary %s, end of page %s, end of page over pages %s\n",
                try_one<general_purpose_resource>(live_bytes, &pages).c_str(),
                try_one<general_purpose_resource>(live_bytes).c_str(), try_one<tracking_resource>(live_bytes).c_str(),
                try_one<canary_resource>(live_bytes).c_str(), try_one<end_of_page_resource>(live_bytes / 64).c_str(),
                try_one<end_of_page_resource>(live_bytes / 64, &pages).c_str());
    return 0;
}

int left(decltype(RLIMIT_AS) which, const char* megabytes, const std::string& kind) {
    set_limit(which, megabytes);
    const std::size_t before = largest_mapping();
    page_resource pages;
    std::unique_ptr<std::pmr::memory_resource> r;
    if (kind == "tracking") {
        r = std::make_unique<tracking_resource>();
    } else if (kind == "canary") {
        r = std::make_unique<canary_resource>();
    } else if (kind == "heap") {
        r = std::make_unique<general_purpose_resource>();
    } else if (kind == "pages") {
        r = std::make_unique<general_purpose_resource>(&pages);
    } else {
        r = std::make_unique<end_of_page_resource>();
    }
    void* const p = r->allocate(5);
    std::printf("left %zu %%\n", largest_mapping() * 100 / before);
    r->deallocate(p, 5);
    return 0;
}

/// One of each kind, with a block.
void use_all() {
    page_resource pages;
    tracking_resource tracking;
    canary_resource canary;
    general_purpose_resource heap;
    general_purpose_resource heap_over_pages(&pages);
    end_of_page_resource end_of_page;
    end_of_page_resource end_of_page_over_pages(&pages);
    temp_resource<> temp;
    std::pmr::memory_resource* const all[] = {
        &pages, &tracking, &canary, &heap, &heap_over_pages, &end_of_page, &end_of_page_over_pages, &temp};
    for (std::pmr::memory_resource* const r : all) {
        void* const p = r->allocate(100);
        std::memset(p, 1, 100);
        r->deallocate(p, 100);
    }
    std::printf("resident %ld, writable %ld, locked %ld MiB\n", mebibytes_of("/proc/self/status", "VmRSS:"),
                mebibytes_of("/proc/self/status", "VmData:"), mebibytes_of("/proc/self/status", "VmLck:"));
}

int locked() {
    if (::mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        std::puts("may not");
        return 0;
    }
    const auto start = std::chrono::steady_clock::now();
    use_all();
    std::printf("in time: %d\n", std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
    return 0;
}

int more_than_there_is() {
    const auto there_is = static_cast<std::size_t>(mebibytes_of("/proc/meminfo", "MemTotal:") +
                                                   mebibytes_of("/proc/meminfo", "SwapTotal:"));
    const std::size_t bytes = 2 * there_is * mebibyte;
    page_resource pages;
    general_purpose_resource heap;
    general_purpose_resource heap_over_pages(&pages);
    basic_general_purpose_resource<fast_policy> fast(&pages);
    tracking_resource tracking;
    canary_resource canary;
    canary_resource canary_over_pages(&pages);
    end_of_page_resource end_of_page;
    end_of_page_resource end_of_page_over_pages(&pages);
    temp_resource<> temp;
    temp_resource<> temp_over_pages(&pages);
    std::pmr::memory_resource* const all[] = {&pages,
                                              &heap,
                                              &heap_over_pages,
                                              &fast,
                                              &tracking,
                                              &canary,
                                              &canary_over_pages,
                                              &end_of_page,
                                              &end_of_page_over_pages,
                                              &temp,
                                              &temp_over_pages};
    int refused = 0;
    for (std::pmr::memory_resource* const r : all) {
        try {
            void* const p = r->allocate(bytes);
            std::printf("granted by number %d\n", refused);
            r->deallocate(p, bytes);
        } catch (const std::bad_alloc&) {
            ++refused;
        }
        void* const p = r->allocate(1000);
        std::memset(p, 1, 1000);
        r->deallocate(p, 1000);
    }
    std::printf("refused %d of %zu\n", refused, std::size(all));
    return 0;
}

int many(std::size_t count) {
    page_resource pages;
    std::vector<std::unique_ptr<std::pmr::memory_resource>> all;
    std::vector<void*> blocks;
    try {
        for (std::size_t i = 0; i < count; ++i) {
            switch (i % 4) {
                case 0: all.push_back(std::make_unique<general_purpose_resource>()); break;
                case 1: all.push_back(std::make_unique<tracking_resource>()); break;
                case 2: all.push_back(std::make_unique<canary_resource>()); break;
                default: all.push_back(std::make_unique<general_purpose_resource>(&pages)); break;
            }
            blocks.push_back(all.back()->allocate(100));
        }
    } catch (const std::bad_alloc&) {
        std::printf("bad_alloc after %zu\n", all.size());
        return 1;
    }
    std::printf("made %zu, resident %ld MiB\n", all.size(), mebibytes_of("/proc/self/status", "VmRSS:"));
    for (std::size_t i = 0; i < all.size(); ++i) {
        all[i]->deallocate(blocks[i], 100);
    }
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    const auto argument = [&](int i) { return count > i ? arguments[i] : "0"; };
    if (what == "addresses") {
        return address_space(argument(2), std::strtoull(argument(3), nullptr, 0) * mebibyte);
    }
    if (what == "addresses_left") {
        return left(RLIMIT_AS, argument(2), argument(3));
    }
    if (what == "data_left") {
        return left(RLIMIT_DATA, argument(2), argument(3));
    }
    if (what == "locked") {
        return locked();
    }
    if (what == "used") {
        use_all();
        return 0;
    }
    if (what == "more") {
        return more_than_there_is();
    }
    return many(std::strtoull(argument(2), nullptr, 0));
}

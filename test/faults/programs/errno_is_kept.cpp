// Neither a deallocation nor a report that the program survives changes errno; nor does an allocation that succeeds.
#include "../support/each_resource.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

namespace {

void* volatile nothing = nullptr;  // the compiler would warn of a plain one

int bad = 0;

template <class Call>
void watch(const char* name, const char* what, Call call) {
    errno = 77;
    call();
    if (errno != 77) {
        if (bad < 20) {
            std::printf("%s: %s changes errno to %d\n", name, what, errno);
        }
        ++bad;
    }
}

void churn(const char* name, const faults::subject& s) {
    unsigned seed = 7;
    std::vector<std::pair<void*, std::size_t>> blocks;
    const int rounds = std::strncmp(name, "end", 3) == 0 || std::strcmp(name, "thorough") == 0 ? 500 : 4'000;
    for (int i = 0; i < rounds; ++i) {
        seed = seed * 1664525 + 1013904223;
        const std::size_t bytes = (seed >> 8) % ((seed & 7) != 0 ? 500 : 60'000);
        void* p = nullptr;
        try {
            watch(name, "allocate", [&] { p = s.resource.allocate(bytes); });
        } catch (const std::bad_alloc&) {
            continue;
        }
        blocks.emplace_back(p, bytes);
        if (blocks.size() > 200) {
            const std::size_t k = (seed >> 5) % blocks.size();
            watch(name, "deallocate", [&] { s.resource.deallocate(blocks[k].first, blocks[k].second); });
            blocks[k] = blocks.back();
            blocks.pop_back();
        }
    }
    for (const auto& b : blocks) {
        watch(name, "deallocate", [&] { s.resource.deallocate(b.first, b.second); });
    }
    watch(name, "stats", [&] { (void)s.stats(); });
    watch(name, "check", [&] { s.check(); });
    watch(name, "a report", [&] { s.resource.deallocate(nothing, 8); });
}

}  // namespace

int main() {
    std::FILE* const nowhere = std::fopen("/dev/null", "w");
    pmr_debug::text_handler quiet({.descriptor = fileno(nowhere), .abort_on_error = false});
    faults::with_each_resource(&quiet, churn);
    pmr_debug::text_handler refused({.descriptor = -1, .abort_on_error = false});
    pmr_debug::general_purpose_resource heap({.handler = &refused});
    watch("heap", "a report that standard error gets", [&] { heap.deallocate(nothing, 8); });
    pmr_debug::json_handler json(fileno(nowhere), pmr_debug::action::carry_on);
    pmr_debug::general_purpose_resource other({.handler = &json});
    watch("heap", "a report as JSON", [&] { other.deallocate(nothing, 8); });
    return bad != 0;
}

// A thread is cancelled while it works with a resource, and gets to no cancellation point of its own meanwhile: it ends
// where the program says, not within the library. The argument says what the thread does there.
#include "../support/each_resource.hpp"

#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace {

void* volatile nothing = nullptr;  // the compiler would warn of a plain one

struct task {
    const char* what;
    const faults::subject* on;
    std::atomic<int> step{0};
};

void use(const faults::subject& s) {
    std::pmr::vector<int> v(100, &s.resource);
    std::pmr::vector<std::pmr::vector<char>> many(&s.resource);
    many.reserve(64);
    for (int i = 0; i < 64; ++i) {
        many.emplace_back(static_cast<std::size_t>(i * 100));
    }
}

void* work(void* argument) {
    task& t = *static_cast<task*>(argument);
    t.step = 1;
    while (t.step < 2) {
    }
    if (std::strcmp(t.what, "use") == 0) {
        use(*t.on);
    } else if (std::strcmp(t.what, "statistics") == 0) {
        (void)t.on->stats();
        t.on->check();
    } else if (std::strcmp(t.what, "crowd") == 0) {
        for (int i = 0; i < 5; ++i) {
            use(*t.on);
        }
    } else {
        t.on->resource.deallocate(nothing, 8);  // told, and ignored
        pmr_debug::write_chain(
            t.on->resource, [](std::string_view, void*) noexcept {}, nullptr);
    }
    t.step = 3;
    pthread_testcancel();
    return nullptr;
}

}  // namespace

int main(int, char** argv) {
    // Resolved to names and lines, into nowhere.
    std::FILE* const nowhere = std::fopen("/dev/null", "w");
    pmr_debug::text_handler quiet({.descriptor = fileno(nowhere), .abort_on_error = false});
    int bad = 0;
    faults::with_each_resource(&quiet, [&](const char* name, const faults::subject& s) {
        std::vector<std::thread> crowd;
        std::atomic<bool> enough{false};
        for (int i = 0; i < (std::strcmp(argv[1], "crowd") == 0 ? 2 : 0); ++i) {
            crowd.emplace_back([&] {
                for (int n = 0; n < 20 && !enough; ++n) {
                    use(s);
                }
            });
        }
        task t{argv[1], &s};
        pthread_t thread{};
        pthread_create(&thread, nullptr, work, &t);
        while (t.step < 1) {
        }
        pthread_cancel(thread);
        t.step = 2;
        void* result = nullptr;
        pthread_join(thread, &result);
        enough = true;
        for (std::thread& c : crowd) {
            c.join();
        }
        if (result != PTHREAD_CANCELED || t.step != 3) {
            std::printf("%s: cancelled within the library\n", name);
            ++bad;
        }
    });
    return bad;
}

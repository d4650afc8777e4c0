// The same error ten thousand times, and another one now and then. It is printed once, and counted.
//   text, json   a handler that ends before main does
//   default      a static one, which is the default
//   own          a handler of the program's, which hears of each, and collecting_handler
//   abort        the process ends by another error
//   fork         the child reports the same as its parent did before
#include <pmr_debug/pmr_debug.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <string_view>

namespace {

constexpr int often = 10'000;

void mismatch(pmr_debug::report_handler* handler, int times) {
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = handler});
    for (int i = 0; i < times; ++i) {
        heap.deallocate(heap.allocate(100), 50);
    }
}

void leak(pmr_debug::report_handler* handler, int times) {
    for (int i = 0; i < times; ++i) {
        pmr_debug::tracking_resource scope({.name = "scope", .handler = handler});
        static_cast<void>(scope.allocate(10));
    }
}

class own_handler final : public pmr_debug::report_handler {
public:
    pmr_debug::action handle(const pmr_debug::report&) noexcept override {
        ++heard;
        return pmr_debug::action::carry_on;
    }
    int heard = 0;
};

pmr_debug::text_handler at_exit({.abort_on_error = false});

}  // namespace

int main(int argc, char** argv) {
    const std::string_view how = argc > 1 ? argv[1] : "text";
    if (how == "text") {
        pmr_debug::text_handler go_on({.abort_on_error = false});
        mismatch(&go_on, often);
        leak(&go_on, 3);
    } else if (how == "json") {
        pmr_debug::json_handler json(2);
        mismatch(&json, often);
        leak(&json, 3);
    } else if (how == "default") {
        pmr_debug::set_default_report_handler(&at_exit);
        mismatch(nullptr, often);
    } else if (how == "shipped") {
        leak(nullptr, 5);
    } else if (how == "own") {
        own_handler own;
        pmr_debug::collecting_handler collected;
        mismatch(&own, often);
        mismatch(&collected, often);
        std::printf("%d %zu", own.heard, collected.count());
    } else if (how == "abort") {
        leak(nullptr, 5);
        mismatch(nullptr, 1);
    } else if (how == "fork") {
        pmr_debug::text_handler go_on({.abort_on_error = false});
        for (int i = 0; i < 2; ++i) {
            if (i == 1 && ::fork() != 0) {
                int status = 0;
                ::wait(&status);
                break;
            }
            mismatch(&go_on, 5);
        }
    }
}
